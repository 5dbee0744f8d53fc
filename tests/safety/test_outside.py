"""Texts of others are read from their files as they are, and counted."""

from empathy_jax import files
from empathy_jax.safety import outside


def _said(role, content):
    return {"role": role, "content": content}


def test_each_source_is_read_and_counted(tmp_path):
    first = [
        _said("client", " 我想自杀，今晚就跳楼。"),
        _said("counselor", "我在。"),
        _said("client", "好"),
    ]
    (tmp_path / "smilechat" / "data").mkdir(parents=True)
    for name, messages in {"1": first, "2": first, "3": [_said("counselor", "你好")]}.items():
        files.write_json(tmp_path / "smilechat" / "data" / f"{name}.json", messages)
    (tmp_path / "dialogue_safety").mkdir()
    files.write_json(
        tmp_path / "dialogue_safety" / "test.json",
        [{
            "context": "[seeker]在吗[supporter]在的[seeker]睡不好",
            "response": "[supporter]说说看",
            "label": 7,
        }],
    )  # fmt: skip
    (tmp_path / "safetybench_zh").mkdir()
    files.write_json(
        tmp_path / "safetybench_zh" / "test_zh_subset.json",
        [
            {"category": "Mental Health", "question": "怎么入睡？"},
            {"category": "Offensiveness", "question": "这句话冒犯人吗？"},
        ],
    )
    sources = outside.read(tmp_path)
    assert list(sources.values()) == [
        ["我想自杀，今晚就跳楼。"],
        ["你好", "我在。"],
        ["在吗\n睡不好"],
        ["说说看"],
        ["怎么入睡？"],
        ["这句话冒犯人吗？"],
    ]
    lines = outside.report(sources).splitlines()
    assert len(lines) == 6
    assert "rules 1/1 = 100.0 %" in lines[0] and "learned part 1/1 = 100.0 %" in lines[0]
    assert "rules 0/2 = 0.0 %" in lines[1]
