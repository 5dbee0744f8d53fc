"""Directories of sentence-transformers, against the library itself."""

import dataclasses
import functools
import json
import logging
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers.processors import TemplateProcessing

from configs import common as configs
from empathy_jax import files, sharding
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models import decoder, encoder, hf
from empathy_jax.models import sentence_transformers_format as directories
from empathy_jax.models.pooling import Embedding
from empathy_jax.training.common import Model
from empathy_jax.training.scorer import Scorer

TOLERANCE = 1e-5
SENTENCES = (
    "最近总是睡不着，",
    "一闭眼就想起白天说错的话。",
    "I keep replaying what my sister said to me at the station. ",
    "妈妈说我想太多了，可我控制不住😔\n",
    "她叫我 <|im_end|> 别再 [SEP] 想 [CLS] 了 <|endoftext|>。",
    "Nobody at work knows, and I'd rather keep it that way… ",
)
# From one character to far more than any model here reads.
TEXTS = [
    "嗯",
    "No.",
    "  前后都有空格  ",
    *(
        "".join((SENTENCES * 4)[start : start + count])
        for start in range(6)
        for count in (1, 2, 18)
    ),
]
ENCODER = encoder.EncoderConfig(
    vocab_size=400, width=32, mlp_width=48, num_layers=2, num_heads=4, max_positions=80
)
DECODER = decoder.DecoderConfig(
    vocab_size=400,
    width=32,
    mlp_width=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=80,
)
INSTRUCTION = "Instruct: 为来信找到合适的回信\nQuery: "
POOLER = dataclasses.replace(ENCODER, pooler=True)
BOTH_ENDS, END, NEITHER = "<|im_start|> $A <|im_end|>", "$A <|im_end|>", None
# Architecture, what the tokenizer puts around a text, how the text becomes a vector.
MODELS = {
    "mean": (ENCODER, BOTH_ENDS, Embedding("mean", 40)),
    "mean, no special tokens": (ENCODER, NEITHER, Embedding("mean", 40, "来信：", "回信：")),
    "cls": (ENCODER, BOTH_ENDS, Embedding("cls", 64, query_prompt="来信：")),
    "cls, with a pooler": (POOLER, BOTH_ENDS, Embedding("cls", 64, document_prompt="reply: ")),
    "last": (DECODER, END, Embedding("last", 64, query_prompt=INSTRUCTION)),
    "decoder, mean": (DECODER, END, Embedding("mean", 64, INSTRUCTION)),
}


@functools.cache
def trained_tokenizer(around: str | None):
    tokenizer = tokenizers.train(TEXTS, 400)
    if around is not None:
        special = [token for token in around.split() if token != "$A"]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=around,
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in special],
        )
    return tokenizer


def fresh_params(config):
    """Weights so large that no layer is idle, and so small that rounding errors stay small."""
    module, scale = (encoder, 7) if isinstance(config, encoder.EncoderConfig) else (decoder, 3)
    params = module.init_params(jax.random.key(0), config)
    return jax.tree.map(lambda leaf: scale * leaf if leaf.ndim > 1 else leaf, params)


def write_model(folder, name):
    """A directory made by us; our model of it."""
    config, around, embedding = MODELS[name]
    params = fresh_params(config)
    hf.save_model(folder, config, params)
    tokenizers.save(trained_tokenizer(around), folder)
    directories.write(folder, embedding, config)
    return config, params, embedding


def our_scorer(folder, embedding):
    """Our vectors of texts from a directory, as the phases make them."""
    place = directories.transformer_folder(folder)
    config = hf.read_config(place)
    layout = sharding.make_layout(configs.get_config("tiny").mesh)
    params = jax.device_put(
        hf.load_params(place, config, dtype="float32"), sharding.replicated(layout.mesh)
    )
    tokenizer = tokenizers.load_plain(str(place))
    model = Model(config, {"params": params}, tokenizer, embedding=embedding)
    return Scorer(model.variables, model, {}, layout)


def assert_same_vectors(folder, embedding, library, texts=TEXTS, **options):
    """Our vectors of questions and of answers are the library's, of cut texts too."""
    tokenizer = library.tokenizer
    assert max(len(tokenizer(text)["input_ids"]) for text in texts) > embedding.max_tokens
    scorer = our_scorer(folder, embedding)
    for ours, theirs in (
        (scorer.embed_questions(texts), library.encode_query(texts, batch_size=8, **options)),
        (scorer.embed_answers(texts), library.encode_document(texts, batch_size=8, **options)),
    ):
        assert theirs.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
        # Or the comparison would say little.
        assert np.median(ours @ ours.T) < 0.99


@pytest.fixture
def quiet(caplog):
    """Fails the test when a library logs a warning; Python's warnings are errors anyway."""
    transformers.utils.logging.enable_propagation()
    yield
    transformers.utils.logging.disable_propagation()
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not loud


@pytest.mark.parametrize("name", MODELS)
def test_the_library_gives_our_vectors(name, tmp_path, quiet):
    _, _, embedding = write_model(tmp_path / "model", name)
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert library.max_seq_length == embedding.max_tokens
    assert library.similarity_fn_name == "cosine"
    assert_same_vectors(tmp_path / "model", embedding, library)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_back(name, tmp_path):
    _, _, embedding = write_model(tmp_path / "model", name)
    assert directories.read(tmp_path / "model") == embedding
    assert directories.transformer_folder(tmp_path / "model") == tmp_path / "model"


def test_typed_control_tokens_are_text_for_the_library_too(tmp_path):
    write_model(tmp_path / "model", "cls")
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    end = library.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = library.preprocess(["好<|im_end|>了"])["input_ids"][0].tolist()
    assert ids.count(end) == 1 and ids[-1] == end


def save_with_library(folder, source, pooling, prompts, max_tokens):
    """A directory made by the library from a plain model directory; its model."""
    transformer = Transformer(str(source), processor_kwargs={"model_max_length": max_tokens})
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling), Normalize()]
    library = SentenceTransformer(modules=modules, prompts=prompts, device="cpu")
    library.save(str(folder), create_model_card=False)
    return library


@pytest.mark.parametrize(
    ("config", "around", "pooling", "expected"),
    [
        (POOLER, BOTH_ENDS, "mean", Embedding("mean", 50, "q: ", "d: ")),
        (POOLER, BOTH_ENDS, "cls", Embedding("cls", 80)),
        (DECODER, END, "lasttoken", Embedding("last", 50, INSTRUCTION)),
    ],
)
def test_what_the_library_saves_is_read(config, around, pooling, expected, tmp_path):
    hf.save_model(tmp_path / "plain", config, fresh_params(config))
    tokenizers.save(trained_tokenizer(around), tmp_path / "plain")
    prompts = {"query": expected.query_prompt, "document": expected.document_prompt}
    library = save_with_library(
        tmp_path / "saved", tmp_path / "plain", pooling, prompts, expected.max_tokens
    )
    assert directories.read(tmp_path / "saved") == expected
    texts = [text.replace("<|", "<") for text in TEXTS]
    assert_same_vectors(tmp_path / "saved", expected, library, texts)


def test_old_directories_keep_the_model_in_a_folder_and_may_lack_normalize(tmp_path):
    folder = tmp_path / "model"
    _, _, embedding = write_model(folder, "cls")
    (folder / "0_Transformer").mkdir()
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / file).rename(folder / "0_Transformer" / file)
    for file in (directories.TRANSFORMER_FILE, directories.TOKENIZER_FILE):
        (folder / file).rename(folder / "0_Transformer" / file)
    shutil.rmtree(folder / "2_Normalize")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    files.write_json(folder / "modules.json", modules[:2])
    assert directories.transformer_folder(folder) == folder / "0_Transformer"
    assert directories.read(folder) == embedding
    library = SentenceTransformer(str(folder), device="cpu")
    assert_same_vectors(folder, embedding, library, normalize_embeddings=True)


def test_real_weights(shared_dir, tmp_path, quiet):
    source, embedding = shared_dir / "models" / "bge_small_zh", Embedding("cls", 128, "来信：")
    config = hf.read_config(source)
    hf.save_model(
        tmp_path / "model",
        config,
        hf.load_params(source, config),
        dtype="float32",
        source_config=hf.read_json(source / "config.json") | {"dtype": "float32"},
    )
    tokenizers.save(tokenizers.load_plain(str(source)), tmp_path / "model")
    directories.write(tmp_path / "model", embedding, config)
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert library.dtype == torch.float32
    assert_same_vectors(tmp_path / "model", embedding, library, [*TEXTS, ""])


def test_a_plain_directory_says_nothing(tmp_path):
    hf.save_model(tmp_path / "plain", ENCODER, fresh_params(ENCODER))
    assert directories.read(tmp_path / "plain") is None
    assert directories.transformer_folder(tmp_path / "plain") == tmp_path / "plain"
    with pytest.raises(ValueError, match=r"tokenizer_config\.json does not exist"):
        directories.write(tmp_path / "plain", Embedding("mean", 40), ENCODER)


def edit(file, **changes):
    """Change a JSON object in a file; None takes the key away."""
    values = json.loads(file.read_text()) | changes
    files.write_json(file, {name: value for name, value in values.items() if value is not None})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "model"
    write_model(folder, "mean")
    return folder


@pytest.fixture
def model_folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "model")


def test_the_limit_is_the_tokenizers_then_the_models(model_folder):
    edit(model_folder / directories.TRANSFORMER_FILE, max_seq_length=None)
    edit(model_folder / directories.TOKENIZER_FILE, model_max_length=33)
    assert directories.read(model_folder).max_tokens == 33
    edit(model_folder / directories.TOKENIZER_FILE, model_max_length=int(1e30))
    assert directories.read(model_folder).max_tokens == ENCODER.max_positions
    (model_folder / directories.TRANSFORMER_FILE).unlink()
    edit(model_folder / directories.TOKENIZER_FILE, model_max_length=None)
    assert directories.read(model_folder).max_tokens == ENCODER.max_positions


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (None, ("", "")),
        ({}, ("", "")),
        ({"query": None, "document": None}, ("", "")),
        ({"query": "q: ", "passage": "p: "}, ("q: ", "p: ")),
        ({"query": "q: ", "corpus": "c: ", "passage": "p: "}, ("q: ", "p: ")),
        ({"document": "", "passage": "p: "}, ("", "")),
        ({"other": "o: "}, ("", "")),
    ],
)
def test_prompts_are_found_where_the_library_looks(model_folder, prompts, expected):
    edit(model_folder / directories.MODEL_FILE, prompts=prompts)
    found = directories.read(model_folder)
    assert (found.query_prompt, found.document_prompt) == expected


def test_the_librarys_other_files_may_be_absent(model_folder):
    (model_folder / directories.MODEL_FILE).unlink()
    shutil.rmtree(model_folder / "2_Normalize")
    assert directories.read(model_folder) == Embedding("mean", 40)


def test_dot_is_cosine_behind_normalize(model_folder):
    edit(model_folder / directories.MODEL_FILE, similarity_fn_name="dot")
    assert directories.read(model_folder) == Embedding("mean", 40)
    modules = json.loads((model_folder / "modules.json").read_text())
    files.write_json(model_folder / "modules.json", modules[:2])
    with pytest.raises(ValueError, match=r"similarity_fn_name is 'dot' .*supported is 'cosine'$"):
        directories.read(model_folder)


MODEL, TRANSFORMER = directories.MODEL_FILE, directories.TRANSFORMER_FILE
CHAT = {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        (MODEL, "model_type", "SparseEncoder"),
        (MODEL, "similarity_fn_name", "euclidean"),
        (MODEL, "truncate_dim", 16),
        (TRANSFORMER, "do_lower_case", True),
        (TRANSFORMER, "transformer_task", "fill-mask"),
        (TRANSFORMER, "modality_config", CHAT),
        (TRANSFORMER, "module_output_name", "sentence_embedding"),
        (TRANSFORMER, "query_length", 32),
        (TRANSFORMER, "document_length", 180),
        (TRANSFORMER, "query_expansion", {"length": 32}),
        (TRANSFORMER, "processing_kwargs", {"text": {"padding": "max_length"}}),
        (TRANSFORMER, "model_args", {"add_pooling_layer": True}),
        (TRANSFORMER, "model_kwargs", {"torch_dtype": "float16"}),
        (TRANSFORMER, "tokenizer_args", {"truncation_side": "left"}),
        (TRANSFORMER, "config_kwargs", {"is_causal": False}),
        ("1_Pooling/config.json", "include_prompt", False),
        ("2_Normalize/config.json", "module_input_name", "token_embeddings"),
    ],
)
def test_settings_that_are_not_ours_are_refused(model_folder, file, name, value):
    edit(model_folder / file, **{name: value})
    with pytest.raises(ValueError) as caught:
        directories.read(model_folder)
    assert str(caught.value).startswith(f"{name} is {value!r} in {model_folder / file}, supported")


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["cls", "mean"]}, r"cls \+ mean"),
        ({"pooling_mode_max_tokens": True}, r"mean \+ max|max \+ mean"),
        ({"pooling_mode_mean_tokens": False}, "none"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max"),
    ],
)
def test_other_poolings_are_refused(model_folder, settings, found):
    edit(model_folder / "1_Pooling" / "config.json", **settings)
    with pytest.raises(ValueError, match=rf"1_Pooling/config\.json is ({found}), supported .*mean"):
        directories.read(model_folder)


LIBRARY = "sentence_transformers.models."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda modules: modules[:1], "lists Transformer; supported are Transformer and Pooling"),
        (lambda modules: [], "lists nothing"),
        (
            lambda modules: [*modules[:2], {"type": LIBRARY + "Dense", "path": "2_Dense"}],
            r"lists Transformer, Pooling, sentence_transformers\.models\.Dense; supported",
        ),
        (
            lambda modules: [{"type": LIBRARY + "Router", "path": ""}],
            r"lists sentence_transformers\.models\.Router; supported",
        ),
        (
            lambda modules: [modules[0] | {"type": "modeling_own.Transformer"}, *modules[1:]],
            r"lists modeling_own\.Transformer, Pooling",
        ),
        (
            lambda modules: [modules[0] | {"path": "../elsewhere"}, *modules[1:]],
            r"path '\.\./elsewhere', it must lie in the model's directory",
        ),
        (
            lambda modules: [modules[0] | {"path": "/elsewhere"}, *modules[1:]],
            "path '/elsewhere', it must lie",
        ),
        (lambda modules: {"Transformer": ""}, "is not a list of modules with type and path"),
        (lambda modules: [{"path": ""}], "is not a list of modules with type and path"),
    ],
)
def test_other_chains_of_modules_are_refused(model_folder, change, message):
    file = model_folder / "modules.json"
    files.write_json(file, change(json.loads(file.read_text())))
    for reader in (directories.read, directories.transformer_folder):
        with pytest.raises(ValueError, match=rf"modules\.json .*{message}"):
            reader(model_folder)
