import pytest

from tests.launch.fake_cloud import Cloud


@pytest.fixture
def cloud(tmp_path):
    """A TPU VM of two workers."""
    return Cloud(tmp_path / "cloud", workers=2)
