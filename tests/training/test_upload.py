"""An export goes to a hub by the hub's own library, or is only shown; the hub is one on loopback."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from empathy_jax import files
from empathy_jax.training import upload
from tests.training import fake_hub

# The hub's library hands large files to its client by an older name of the argument.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "someone/empathy-test"
CARD = '---\nlicense: "apache-2.0"\ntags: ["a"]\n---\n\n# 模型\n'


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The library as HF_ENDPOINT and HF_TOKEN would set it up, by LFS instead of the Xet storage."""
    with fake_hub.running() as running:
        for name, value in (
            ("ENDPOINT", running.url),
            ("HF_HUB_OFFLINE", False),
            ("HF_HUB_DISABLE_XET", True),
            ("HF_TOKEN_PATH", str(tmp_path / "no_token")),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield running


@pytest.fixture
def directory(tmp_path) -> Path:
    folder = tmp_path / "hf"
    (folder / "1_Pooling").mkdir(parents=True)
    files.write_text(folder / "README.md", CARD)
    files.write_json(folder / "config.json", {"model_type": "llama"})
    files.write_json(folder / "1_Pooling" / "config.json", {})
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_new_repository_is_private_and_holds_the_directory(hub, directory, capsys):
    upload.run(directory, NAME, dry_run=False)
    assert hub.repositories == {NAME: content(directory)}
    assert hub.visibility == {NAME: "private"}
    said = capsys.readouterr()
    assert f"{hub.url}/{NAME}/commit/1" in said.out
    assert fake_hub.TOKEN not in said.out + said.err


def test_weights_of_an_earlier_upload_go_and_other_files_stay(hub, directory):
    hub.repositories[NAME] = {
        "model-00001-of-00002.safetensors": b"old",
        "model.safetensors.index.json": b"{}",
        "LICENSE": b"by hand",
    }
    upload.run(directory, NAME, dry_run=False)
    assert hub.repositories[NAME] == {"LICENSE": b"by hand", **content(directory)}


def test_a_dry_run_shows_files_sizes_and_card_and_sends_nothing(hub, directory, capsys):
    upload.run(directory, NAME, dry_run=True)
    assert hub.requests == []
    said = capsys.readouterr().out
    sizes = {path: len(data) for path, data in content(directory).items()}
    for line in (
        f"{hub.url}/{NAME}",
        *(f"{size:>15,}  {path}" for path, size in sizes.items()),
        f"{sum(sizes.values()):>15,}  in 4 files",
        "# 模型",
        'license: "apache-2.0"',
    ):
        assert line in said
    assert fake_hub.TOKEN not in said


def test_refusals_are_one_line_that_names_the_field(hub, directory, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token")
    with pytest.raises(ValueError, match=r"config\.export\.upload .*401") as caught:
        upload.run(directory, NAME, dry_run=False)
    assert "\n" not in str(caught.value) and "hf_wrong" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    asked = len(hub.requests)
    with pytest.raises(ValueError, match=r"finds no token; .*HF_TOKEN"):
        upload.run(directory, NAME, dry_run=False)
    assert len(hub.requests) == asked
    assert hub.repositories == {}
    assert "hf_wrong" not in "".join(capsys.readouterr())


def test_a_card_that_the_hub_cannot_read_stops_the_upload(hub, directory):
    files.write_text(directory / "README.md", "---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match=r"config\.export\.upload .*Invalid metadata"):
        upload.run(directory, NAME, dry_run=False)
    assert hub.repositories == {NAME: {}}


def test_a_hub_that_is_not_there_is_said(hub, directory, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"was not reached"):
        upload.run(directory, NAME, dry_run=False)


def test_adapters_on_weights_of_this_machine_stay_here(hub, directory, tmp_path):
    settings = directory / "adapter_config.json"
    for base, allowed in (("owner/base", True), (str(tmp_path), False)):
        settings.write_text(json.dumps({"base_model_name_or_path": base}))
        if allowed:
            upload.run(directory, NAME, dry_run=False)
            continue
        with pytest.raises(ValueError, match=r"upload_part=hf"):
            upload.run(directory, NAME, dry_run=False)
    with pytest.raises(ValueError, match=r"int4 does not exist.*upload_part"):
        upload.run(tmp_path / "int4", NAME, dry_run=False)


@pytest.mark.parametrize("name", ["", "name", "a/b/c", "https://hub/a/b", "a/b c", "--a/b"])
def test_a_name_that_is_no_repository_is_refused(name):
    with pytest.raises(ValueError, match=r"config\.export\.upload is .*owner/name"):
        upload.check_name(name)
    upload.check_name(NAME)
