import pytest

from tests.launch.fake_cloud import Cloud


@pytest.fixture
def cloud(tmp_path):
    """A TPU VM of two workers; what runs on them ends with the test."""
    cloud = Cloud(tmp_path / "cloud", workers=2)
    yield cloud
    cloud.shut_down()
