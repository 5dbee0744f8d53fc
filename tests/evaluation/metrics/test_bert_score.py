import jax
import numpy as np
import pytest
import torch
import transformers
from bert_score.utils import bert_cos_score_idf

from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.evaluation.metrics import bert_score
from empathy_jax.models import hf
from tests.evaluation.metrics.real_pairs import random_pairs, real_pairs

CHARACTERS = "我很难过也想你了的，。！？…“”（）abc9é听起来真的"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face directory of a BERT with random weights of some size."""
    path = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = dict.fromkeys([*special, *CHARACTERS])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    transformers.BertTokenizerFast(vocab=vocabulary).save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=70, initializer_range=0.3,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(path)
    return path


def _ours(folder, texts, pairs, layer):
    config = hf.read_config(folder)
    params = jax.device_put(hf.load_params(folder, config))
    tokenizer = tokenizers.load_plain(str(folder), config.vocab_size)
    return bert_score.score_pairs(texts, pairs, params, config, tokenizer, layer)


def _theirs(folder, pairs, layer):
    """(P, R, F) of the package bert-score with an encoder cut to its first layers."""
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    model.encoder.layer = torch.nn.ModuleList(list(model.encoder.layer)[:layer])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    # What bert-score asks of an empty text, and transformers 5 does not have any more.
    ends = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    tokenizer.build_inputs_with_special_tokens = lambda ids: [ends[0], *ids, ends[1]]
    idf = dict.fromkeys(range(model.config.vocab_size), 1.0)
    idf[tokenizer.sep_token_id] = idf[tokenizer.cls_token_id] = 0
    candidates, references = (list(side) for side in zip(*pairs, strict=True))
    return bert_cos_score_idf(
        model, references, candidates, tokenizer, idf, device="cpu", batch_size=64
    ).T.numpy()


def _check(folder, pairs, layer, layers):
    texts = [text for pair in pairs for text in pair]
    places = np.arange(len(texts)).reshape(-1, 2)
    found = _ours(folder, texts, places, layer)
    expected = _theirs(folder, pairs, layer or layers)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=True):
        np.testing.assert_allclose(found[f"bertscore_{name}"], values, atol=1e-6)
    assert np.ptp(expected[2]) > 0.05


def test_500_random_pairs_equal_the_package_bert_score(folder, capfd):
    _check(folder, random_pairs(500, 60, seed=5), layer=2, layers=3)


@pytest.mark.slow
def test_100_real_pairs_equal_the_package_bert_score(shared_dir, capfd):
    _check(shared_dir / "models" / "bge_small_zh", real_pairs(shared_dir), layer=0, layers=4)


def test_what_shares_a_block_changes_nothing(folder, monkeypatch):
    texts = [text for pair in random_pairs(12, 50, seed=1) for text in pair]
    pairs = np.array([[i, j] for i in range(8) for j in range(8, 24)])
    whole = _ours(folder, texts, pairs, 0)
    for name, size in (("TEXTS", 5), ("PAIRS", 3)):
        monkeypatch.setattr(bert_score, name, size)
    parts = _ours(folder, texts, pairs, 0)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, atol=2e-6)
    swapped = _ours(folder, texts, pairs[:, ::-1], 0)
    np.testing.assert_allclose(swapped["bertscore_recall"], whole["bertscore_precision"], atol=2e-6)


def test_the_same_text_scores_one_and_an_empty_one_nothing(folder):
    found = _ours(folder, ["我很难过", "", "听起来"], np.array([[0, 0], [0, 1], [1, 2]]), 0)
    np.testing.assert_allclose(found["bertscore_f1"], [1, 0, 0], atol=1e-6)
    nothing = _ours(folder, ["我"], np.zeros((0, 2), int), 0)
    assert nothing["bertscore_f1"].shape == (0,)


def test_a_layer_that_there_is_not_is_refused(folder):
    with pytest.raises(
        ValueError, match=r"bertscore_layer is 4; the encoder has the layers 1 to 3"
    ):
        _ours(folder, ["我"], np.array([[0, 0]]), 4)
