"""Topics: our taxonomy is whole, users' files are checked, labels and nearness decide as documented."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import yaml

from configs import reward_model as reward_model_config
from empathy_jax import sharding
from empathy_jax.corpus import sample, topics
from empathy_jax.corpus.topics import Assignment
from empathy_jax.models.pooling import Embedding
from empathy_jax.training import common
from empathy_jax.training.scorer import Scorer

COUNSEL_CHAT = [
    "depression",
    "anxiety",
    "counseling-fundamentals",
    "intimacy",
    "relationships",
    "parenting",
    "family-conflict",
    "self-esteem",
    "relationship-dissolution",
    "trauma",
    "behavioral-change",
    "marriage",
    "anger-management",
    "lgbtq",
    "substance-abuse",
    "spirituality",
    "professional-ethics",
    "workplace-relationships",
    "diagnosis",
    "domestic-violence",
    "social-relationships",
    "grief-and-loss",
    "self-harm",
    "sleep-improvement",
    "eating-disorders",
    "legal-regulatory",
    "stress",
    "children-adolescents",
    "addiction",
    "human-sexuality",
    "military-issues",
]
COUNSEL_CHAT_SECOND_FILE = ["Career Counseling", "Alzheimer's", "Legal & Regulatory"]

SMALL = {
    "topics": [
        {
            "name": "睡眠",
            "english": "Sleep",
            "description": "睡不好。",
            "aliases": ["insomnia", "Sleep Improvement"],
            "subtopics": [
                {"name": "失眠", "english": "Lying awake", "description": "睡不着。"},
                {"name": "噩梦", "english": "Nightmares", "description": "做噩梦。"},
            ],
        },
        {
            "name": "职场",
            "english": "Work",
            "description": "工作的事。",
            "subtopics": [{"name": "失业", "english": "Job loss", "description": "没有工作。"}],
        },
    ]
}
# Where the texts of these tests lie on the circle, in degrees.
ANGLES = {
    "睡不着。": 0,
    "做噩梦。": 40,
    "没有工作。": 180,
    "夜里醒着": 5,
    "梦见他": 45,
    "远": 90,
    "没活干": 175,
}


def embed(texts):
    angles = np.radians([ANGLES[text] for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


@pytest.fixture
def taxonomy(tmp_path):
    return topics.load_taxonomy(_write(tmp_path, SMALL))


def _write(folder, value, name="mine.yaml"):
    path = folder / name
    path.write_text(
        value if isinstance(value, str) else yaml.safe_dump(value, allow_unicode=True), "utf-8"
    )
    return str(path)


def _assign(taxonomy, question, mapping=None, embed=embed, threshold=0.9, **labels):
    record = {"question": question, **labels}
    return topics.assign([record], taxonomy, mapping or {}, embed, threshold)[0]


def test_our_taxonomy_has_29_main_and_182_sub_topics():
    taxonomy = topics.load_taxonomy()
    subs = [sub for topic in taxonomy.topics for sub in topic.subtopics]
    assert len(taxonomy.topics) == 29
    assert len(subs) == 182
    entries = [*taxonomy.topics, *subs]
    for attribute in ("name", "english", "description"):
        values = [getattr(entry, attribute) for entry in entries]
        assert [value for value in values if values.count(value) > 1] == []
    for entry in entries:
        assert re.fullmatch(r"[一-鿿、]+", entry.name)
        assert re.fullmatch(r"[A-Z][A-Za-z,' -]+", entry.english)
        assert re.fullmatch(r"[一-鿿，、]{8,60}。", entry.description)


@pytest.mark.parametrize("language", sample.LANGUAGES)
def test_our_taxonomy_knows_the_labels_of_the_sample(language):
    records = sample.sample_questions(language)
    found = topics.assign(records, topics.load_taxonomy(), {}, None, 0.5)
    unknown = {
        record["topic"] for record, got in zip(records, found, strict=True) if got.by != "label"
    }
    assert unknown == set()
    assert all(got.similarity is None for got in found)


@pytest.mark.parametrize("label", COUNSEL_CHAT + COUNSEL_CHAT_SECOND_FILE)
def test_our_taxonomy_knows_the_labels_of_counsel_chat(label):
    got = _assign(topics.load_taxonomy(), "?", embed=None, topic=label)
    assert got.by == "label"


def test_some_labels_of_counsel_chat_by_hand():
    taxonomy = topics.load_taxonomy()
    for label, place in {
        "grief-and-loss": ("丧失与哀伤", None),
        "Human Sexuality": ("性与性别", None),
        "domestic-violence": ("创伤与暴力", "伴侣暴力"),
        "Substance Abuse,Depression": ("成瘾与沉迷", "酒精与药物"),
    }.items():
        assert _assign(taxonomy, "?", embed=None, topic=label)[:2] == place


def test_a_label_of_the_source_decides_and_the_sub_topic_is_the_nearest_of_that_topic(taxonomy):
    near = pytest.approx(np.cos(np.radians(5)))
    assert _assign(taxonomy, "梦见他", topic="Insomnia!") == ("睡眠", "噩梦", "label", near)
    # 没活干 is far from all of 睡眠; the label stands all the same.
    far = pytest.approx(np.cos(np.radians(135)))
    assert _assign(taxonomy, "没活干", topic="睡眠") == ("睡眠", None, "label", far)
    assert _assign(taxonomy, "梦见他", topic="sleep", subtopic="失眠") == (
        "睡眠",
        "失眠",
        "label",
        None,
    )


def test_labels_that_contradict_each_other(taxonomy):
    """The main topic's label wins; an unknown one leaves the word to the other."""
    assert _assign(taxonomy, "远", embed=None, topic="work", subtopic="失眠")[:2] == ("职场", None)
    assert _assign(taxonomy, "远", embed=None, topic="?", subtopic="失眠")[:2] == ("睡眠", "失眠")
    assert _assign(taxonomy, "远", embed=None, topic="失业", subtopic="睡眠")[:2] == (
        "职场",
        "失业",
    )


@pytest.mark.parametrize("label", ["其他,Work", "其他; work", "work|睡眠", "其他、职场"])
def test_the_first_understood_label_of_several_counts(taxonomy, label):
    assert _assign(taxonomy, "远", embed=None, topic=label).topic == "职场"


def test_without_a_label_the_nearest_description_decides(taxonomy):
    near = pytest.approx(np.cos(np.radians(5)))
    assert _assign(taxonomy, "夜里醒着") == ("睡眠", "失眠", "nearest", near)
    assert _assign(taxonomy, "没活干", topic="其他") == ("职场", "失业", "nearest", near)


def test_below_the_threshold_a_question_is_unassigned_and_keeps_its_similarity(taxonomy):
    cosine = float(np.cos(np.radians(50)))
    near = pytest.approx(cosine)
    assert _assign(taxonomy, "远", threshold=cosine + 1e-3) == (None, None, "unassigned", near)
    assert _assign(taxonomy, "远", threshold=cosine - 1e-3) == ("睡眠", "噩梦", "nearest", near)


def test_without_an_encoder_only_labels_count(taxonomy):
    assert _assign(taxonomy, "夜里醒着", embed=None) == (None, None, "unassigned", None)
    assert _assign(taxonomy, "夜里醒着", embed=None, topic="Work") == ("职场", None, "label", None)


def test_only_open_questions_are_embedded_and_none_are_no_work(taxonomy):
    asked = []

    def watched(texts):
        asked.append(texts)
        return embed(texts)

    records = [
        {"question": "夜里醒着", "subtopic": "失业"},
        {"question": "梦见他"},
    ]
    found = topics.assign(records, taxonomy, {}, watched, 0.9)
    assert [got.subtopic for got in found] == ["失业", "噩梦"]
    assert asked[0] == ["梦见他"]
    asked.clear()
    assert topics.assign(records[:1], taxonomy, {}, watched, 0.9)[0].topic == "职场"
    assert topics.assign([], taxonomy, {}, watched, 0.9) == []
    assert asked == []


def test_a_mapping_comes_before_the_taxonomy(taxonomy, tmp_path):
    text = "Insomnia: 职场/失业\nsleep: null\n'404': 睡眠\n"
    mapping = topics.load_mapping(_write(tmp_path, text, "mapping.yaml"))
    assert mapping == {"Insomnia": "职场/失业", "sleep": None, "404": "睡眠"}
    assert _assign(taxonomy, "远", mapping, topic="insomnia")[:3] == ("职场", "失业", "label")
    assert _assign(taxonomy, "夜里醒着", mapping, topic="Sleep")[:3] == ("睡眠", "失眠", "nearest")
    assert _assign(taxonomy, "梦见他", mapping, topic="404")[:3] == ("睡眠", "噩梦", "label")
    assert topics.load_mapping() == {}


def test_a_mapping_to_no_topic_is_refused(taxonomy):
    with pytest.raises(ValueError, match=r"no topic '职场/失眠'.*config\.corpus\.topic_mapping"):
        _assign(taxonomy, "远", {"x": "职场/失眠"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "must map labels to topics, got list"),
        ("404: 睡眠\n", "got 404: '睡眠'; put the label in quotes"),
        ("a: [睡眠]\n", r"got 'a': \['睡眠'\]"),
        ("a: b: c\n", "is not YAML"),
    ],
)
def test_malformed_mappings_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        topics.load_mapping(_write(tmp_path, text))
    assert "config.corpus.topic_mapping" in str(error.value)


@pytest.mark.parametrize("threshold", [-1.5, 1.01, float("nan")])
def test_thresholds_out_of_range_are_refused(taxonomy, threshold):
    with pytest.raises(ValueError, match=r"config\.corpus\.topic_threshold"):
        _assign(taxonomy, "远", threshold=threshold)


def _changed(change):
    value = yaml.safe_load(yaml.safe_dump(SMALL))
    change(value["topics"])
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("topics: [", "is not YAML.*line"),
        ("", "single key `topics`"),
        ("- a\n", "single key `topics`"),
        (SMALL | {"version": 1}, "single key `topics`"),
        ({"topics": []}, "topics must be a list with at least one entry"),
        ({"topics": {"a": 1}}, "topics must be a list with at least one entry"),
        ({"topics": ["睡眠"]}, r"topics\[0\] must be a mapping, got str"),
        (_changed(lambda t: t[1].pop("english")), r"topics\[1\] \(职场\): english .* got None"),
        (
            _changed(lambda t: t[0].update(name="  ")),
            r"topics\[0\] .*: name must be text, got '  '",
        ),
        (_changed(lambda t: t[0].update(name=7)), r"topics\[0\]: name must be text, got 7"),
        (_changed(lambda t: t[0].update(name="a/b")), "a name has no '/'"),
        (_changed(lambda t: t[0].update(alias=["x"])), "has the key 'alias'; allowed are aliases"),
        (_changed(lambda t: t[0].update(aliases="x")), "aliases must be a list, got 'x'"),
        (_changed(lambda t: t[0].update(aliases=[1])), "an alias must be text, got 1"),
        (
            _changed(lambda t: t[1].pop("subtopics")),
            r"topics\[1\] \(职场\): subtopics must be a list",
        ),
        (
            _changed(lambda t: t[0]["subtopics"][1].update(description=None)),
            r"topics\[0\] \(睡眠\): subtopics\[1\] \(噩梦\): description must be text, got None",
        ),
        (
            _changed(lambda t: t[0]["subtopics"][0].update(subtopics=[])),
            "has the key 'subtopics'; allowed",
        ),
        (_changed(lambda t: t[1].update(name="睡眠")), "topics has '睡眠' twice"),
        (
            _changed(lambda t: t[0]["subtopics"][1].update(name="失眠")),
            r"topics\[0\] \(睡眠\): subtopics has '失眠' twice",
        ),
        (
            _changed(lambda t: t[1].update(aliases=["SLEEP improvement"])),
            "'SLEEP improvement' means both 睡眠 and 职场",
        ),
        (
            _changed(lambda t: t[1]["subtopics"][0].update(aliases=["噩梦"])),
            "'噩梦' means both 睡眠/噩梦 and 职场/失业",
        ),
    ],
)
def test_malformed_taxonomies_are_refused(tmp_path, value, message):
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        topics.load_taxonomy(_write(tmp_path, value))
    assert "config.corpus.topics" in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"No such file.*config\.corpus\.topics"):
        topics.load_taxonomy(str(tmp_path / "none.yaml"))
    (tmp_path / "gbk.yaml").write_bytes("topics: 睡眠".encode("gbk"))
    with pytest.raises(ValueError, match=r"not UTF-8.*config\.corpus\.topics"):
        topics.load_taxonomy(str(tmp_path / "gbk.yaml"))


def test_a_byte_order_mark_does_no_harm(taxonomy, tmp_path):
    text = yaml.safe_dump(SMALL, allow_unicode=True)
    with_mark = topics.load_taxonomy(_write(tmp_path, "\ufeff" + text, "bom.yaml"))
    assert with_mark.topics == taxonomy.topics


def test_plain_questions_with_a_real_encoder(shared_dir):
    """A Chinese encoder of 24 million parameters finds the topic of short, plain questions."""
    config = reward_model_config.get_config()
    # One device: the others would repeat its work on the same cores.
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    layout = sharding.Layout(mesh, sharding.make_layout(config.mesh).rules)
    path = str(shared_dir / "models" / "bge_small_zh")
    model = common.load_model(
        path, config.reward_model, "config.corpus.topic_encoder", None, layout
    )
    model = dataclasses.replace(model, embedding=Embedding("cls", max_tokens=64))
    encoder = Scorer(model.variables, model, {}, layout)
    plain = {
        "我失眠好几个月了，晚上怎么都睡不着，该怎么办？": "睡眠与身心不适",
        "和男朋友分手半年了，还是忘不掉他，怎么走出来？": "失恋与分手",
        "婆婆什么都要管，老公不帮我说话，我很委屈。": "婆媳与家族",
        "高考没有考好，我想复读，可是父母不同意。": "学业与升学",
        "养了十年的狗去世了，我每天都在哭。": "丧失与哀伤",
        "一想到上班就难受，领导总是批评我，我想辞职。": "职场与职业",
        "孩子每天玩手机，不肯写作业，一说就发脾气。": "亲子教育",
        "我发现自己喜欢同性，我是不是同性恋？": "性与性别",
    }
    off_topic = ["闭合性骨折正确的处理方法是什么？", "如何用筷子把鸡蛋打散再加盐？"]
    records = [{"question": question} for question in [*plain, *off_topic]]
    with jax.set_mesh(layout.mesh):
        found = topics.assign(records, topics.load_taxonomy(), {}, encoder.embed_answers, 0.56)
    assert [got.topic for got in found[: len(plain)]] == list(plain.values())
    for got in found[len(plain) :]:
        assert got == Assignment(None, None, "unassigned", got.similarity)
        assert got.similarity < 0.56
