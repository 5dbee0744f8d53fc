"""Tokenizers: loading, our chat template, training a small one, prompts and completions as ids.

What people type is data. The chat template puts a space after the first character of every added
token that it meets in a message (`<|im_end|>` becomes `< |im_end|>`), so that no message can open
or close a turn, in whatever program renders the template. Completions are encoded by cutting the
text inside every added token, which yields no control ids either and loses nothing: decoding gives
the same text back.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from empathy_jax import chain_of_empathy

_CHATML = {
    "before": "",
    "open": "<|im_start|>",
    "after_role": "\n",
    "close": "<|im_end|>",
    "after_close": "\n",
}
_LLAMA3 = {
    "before": "<|begin_of_text|>",
    "open": "<|start_header_id|>",
    "after_role": "<|end_header_id|>\n\n",
    "close": "<|eot_id|>",
    "after_close": "",
}

_PAD_CANDIDATES = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<|end_of_text|>")

# How a tokenizer was loaded; transformers 5 writes it into the saved config.
_LOAD_TIME_KEYS = ("backend", "is_local", "local_files_only")

# One of them is in every directory that a tokenizer was saved to.
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")

WHOLE_COUNT = 100_000  # times that a string to be kept whole is counted in `train`
_TRAINED_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# One alternative per kind of piece that BPE may merge within but not across: a tag,
# a run of letters with the space before it, a digit, a run of punctuation that stops before a tag,
# white space.
_PIECES = (
    r"</?[A-Za-z_][A-Za-z0-9_]*>"
    r"| ?[\p{L}\p{M}]+"
    r"|\p{N}"
    r"| ?(?:(?!</?[A-Za-z_])[^\s\p{L}\p{M}\p{N}])+"
    r"|<"
    r"|\s+(?!\S)"
    r"|\s+"
)


def load(
    path_or_id: str,
    language: str = "zh",
    model_vocab_size: int | None = None,
    form: str = "chain",
) -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer with our chat template and its end-of-turn token as eos.

    Args:
      path_or_id: directory or hub id.
      language: of the system prompt in the template, "zh" or "en".
      model_vocab_size: rows of the model's embedding, checked with `check_matches` when given.
      form: what the system prompt asks for, one of `chain_of_empathy.FORMATS`.

    Raises:
      ValueError: when there is no fast tokenizer, no known turn format, or the ids do not fit the
      model.
    """
    tokenizer = load_plain(path_or_id, model_vocab_size)
    return set_chat_template(tokenizer, language, form)


def load_plain(
    path_or_id: str, model_vocab_size: int | None = None
) -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer as it comes, without a chat template: for encoders.

    Args:
      path_or_id: directory or hub id.
      model_vocab_size: rows of the model's embedding, checked with `check_matches` when given.

    Raises:
      ValueError: when there is no fast tokenizer, or the ids do not fit the model.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path_or_id)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"No tokenizer could be read from {path_or_id!r} ({reason});"
            " set config.model.tokenizer (config.reward_model.tokenizer) to a directory with"
            " tokenizer.json or to a hub id."
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {path_or_id!r} has no tokenizer.json (a fast tokenizer);"
            " set config.model.tokenizer (config.reward_model.tokenizer) to one that has."
        )
    if model_vocab_size is not None:
        check_matches(tokenizer, model_vocab_size)
    return tokenizer


def check_matches(tokenizer: transformers.PreTrainedTokenizerFast, model_vocab_size: int) -> None:
    """Checks that every token id has a row in the model's embedding; a larger embedding is fine.

    Raises:
      ValueError: when the largest id is not below the vocabulary size.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= model_vocab_size:
        raise ValueError(
            f"The tokenizer's largest token id is {largest}, but the model's vocabulary has"
            f" {model_vocab_size} rows: ids must be below it."
            " Change config.model.tokenizer (config.reward_model.tokenizer)."
        )


def check_same_ids(
    tokenizer: transformers.PreTrainedTokenizerFast, weights: Path, field: str, weights_field: str
) -> None:
    """Checks that a token has the id under which the weights have learnt it.

    Args:
      tokenizer: to be used with weights that it did not come with.
      weights: directory with the tokenizer that they came with; without one nothing is checked.
      field, weights_field: of the config, where both come from.

    Raises:
      ValueError: when a token of both tokenizers has two ids; names the fields and one such token.
    """
    if not any((weights / name).is_file() for name in _VOCABULARY_FILES):
        return
    given, learnt = tokenizer.get_vocab(), load_plain(str(weights)).get_vocab()
    shared = given.keys() & learnt.keys()
    moved = sorted((token for token in shared if given[token] != learnt[token]), key=learnt.get)
    if moved:
        raise ValueError(
            f"{len(moved)} of the {len(shared)} tokens that {field} shares with the tokenizer of"
            f" {weights_field} have another id, such as {moved[0]!r}: {given[moved[0]]} and"
            f" {learnt[moved[0]]}. The weights know the latter; leave {field} empty."
        )


def set_chat_template(
    tokenizer: transformers.PreTrainedTokenizerFast, language: str, form: str = "chain"
) -> transformers.PreTrainedTokenizerFast:
    """Gives the tokenizer our template, its end-of-turn token as eos, and a pad token; returns it.

    Args:
      tokenizer: is changed in place.
      language: of the system prompt, "zh" or "en".
      form: what the system prompt asks for, one of `chain_of_empathy.FORMATS`.

    Raises:
      ValueError: when the tokenizer has neither ChatML's nor Llama 3's turn tokens.
    """
    system = chain_of_empathy.system_prompt(language, form)
    turns = _turn_format(tokenizer)
    tokenizer.chat_template = _chat_template(turns, system, control_tokens(tokenizer))
    tokenizer.eos_token = turns["close"]
    if tokenizer.pad_token is None:
        added = tokenizer.get_added_vocab()
        tokenizer.pad_token = next((t for t in _PAD_CANDIDATES if t in added), turns["close"])
    return tokenizer


def control_tokens(tokenizer: transformers.PreTrainedTokenizerFast) -> tuple[str, ...]:
    """The added tokens of the tokenizer, special or not, that text must never yield, by id.

    Raises:
      ValueError: for an added token that a space after its first character would not break.
    """
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
    tokens = tuple(token for token, _ in added if not token.isspace())
    for token in tokens:
        if len(token) < 2 or token[0] in token[1:] or any(map(str.isspace, token)):
            raise ValueError(
                f"The tokenizer's added token {token!r} cannot be told from text: it must have two"
                " characters or more, no white space, and a first character that does not recur."
                " Choose another config.model.tokenizer."
            )
    return tokens


def prompt_ids(tokenizer: transformers.PreTrainedTokenizerFast, question: str) -> list[int]:
    """The ids of a conversation with one question, up to where the assistant begins."""
    return conversation_ids(tokenizer, [{"role": "user", "content": question}])


def conversation_ids(
    tokenizer: transformers.PreTrainedTokenizerFast, messages: Sequence[dict[str, str]]
) -> list[int]:
    """The ids of a conversation up to where the assistant begins; the system prompt is ours where it
    has none.

    Args:
      tokenizer: with our chat template.
      messages: at least one, each with `role` (system, user or assistant) and `content`.
    """
    return tokenizer.apply_chat_template(
        list(messages),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )


def completion_ids(tokenizer: transformers.PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids of what the assistant says, free of control ids, then the end of the turn."""
    pieces = _cut_inside(text, control_tokens(tokenizer))
    encoded = tokenizer.backend_tokenizer.encode_batch(pieces, add_special_tokens=False)
    return [id_ for piece in encoded for id_ in piece.ids] + [tokenizer.eos_token_id]


def text_ids(
    tokenizer: transformers.PreTrainedTokenizerFast, text: str, max_tokens: int
) -> list[int]:
    """The ids of a text as an encoder reads it, cut to `max_tokens`.

    The tokenizer's own first and last tokens ([CLS], [SEP]) are added where it has them; control
    tokens typed in the text stay plain text.
    """
    return tokenizer(text, truncation=True, max_length=max_tokens, split_special_tokens=True)[
        "input_ids"
    ]


def end_texts(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    """Makes a tokenizer that adds nothing to a text add its end token, from now on.

    The last token of a text is where a decoder has read all of it: without an end it would be any
    word, and an empty text would have none.
    """
    if not tokenizer("")["input_ids"]:
        end = tokenizer.eos_token
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}",
            pair=f"$A {end} $B {end}",
            special_tokens=[(end, tokenizer.eos_token_id)],
        )


def decode(tokenizer: transformers.PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """The text of a completion up to the end of the turn; control tokens before it stay visible."""
    ids = [int(id_) for id_ in ids]
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class Detokenizer:
    """The text of a completion as its tokens come, in whole characters.

    A character may take several tokens; what does not make one yet is kept back. All parts together
    are `decode` of all tokens, without the end token's cut.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast):
        self._decode = tokenizer.backend_tokenizer.decode
        # The tokens told last give the new ones their place: some decoders drop a leading space.
        self._told: list[int] = []
        self._kept: list[int] = []

    def feed(self, ids: Sequence[int]) -> str:
        """The text that is certain with these tokens."""
        self._kept += ids
        new = self._new_text()
        # Bytes that are no character, or not yet one, come out as U+FFFD.
        if not new or new.endswith("\ufffd"):
            return ""
        self._told, self._kept = self._kept, []
        return new

    def close(self) -> str:
        """The text of what was kept back, at the end."""
        new, self._kept = self._new_text(), []
        return new

    def _new_text(self) -> str:
        before = self._decode(self._told, skip_special_tokens=False)
        whole = self._decode(self._told + self._kept, skip_special_tokens=False)
        return whole[len(before) :]


def train(
    texts: Iterable[str], vocab_size: int, whole: Sequence[str] = ()
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with ChatML's tokens, learnt from texts; deterministic.

    It has no normaliser: any text decodes to itself. `<|endoftext|>` is 0 (pad), `<|im_start|>` 1
    and `<|im_end|>` 2 (eos). Rendered chains among the texts make the tags short.

    Args:
      texts: what to learn from.
      whole: strings that become one token each, such as the tags of a chain, before anything is
        learnt from the texts; they stay ordinary text, whoever writes them.
      vocab_size: upper bound on the number of tokens, at least 259 (bytes and special tokens).

    Raises:
      ValueError: when `vocab_size` is too small to hold every byte.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(_TRAINED_SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size must be at least {smallest}, got {vocab_size};"
            " change config.model.vocab_size."
        )
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_TRAINED_SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # Counted so often, their letters are merged first.
    bpe.train_from_iterator([*texts, *(list(whole) * WHOLE_COUNT)], trainer)
    pad, _, eos = _TRAINED_SPECIAL_TOKENS
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=pad,
        eos_token=eos,
        additional_special_tokens=[_CHATML["open"]],
        clean_up_tokenization_spaces=False,
    )


def save(tokenizer: transformers.PreTrainedTokenizerFast, path: str | Path) -> None:
    """Writes a Hugging Face directory, chat template included, for transformers 4 and 5 alike.

    transformers 5 writes a class name and a list under a key that 4 (and so many servers) cannot
    read; both have older spellings that 5 reads as well.
    """
    tokenizer.save_pretrained(str(path))
    config_file = Path(path) / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
    written = {key: value for key, value in config.items() if key not in _LOAD_TIME_KEYS}
    text = json.dumps(written, ensure_ascii=False, indent=2, sort_keys=True)
    config_file.write_text(text + "\n", encoding="utf-8")


def _turn_format(tokenizer: transformers.PreTrainedTokenizerFast) -> dict[str, str]:
    added = tokenizer.get_added_vocab()
    for turns in (_CHATML, _LLAMA3):
        if turns["open"] in added and turns["close"] in added:
            return turns
    raise ValueError(
        "The tokenizer has neither <|im_start|> and <|im_end|> (ChatML) nor <|start_header_id|>"
        f" and <|eot_id|> (Llama 3) among its added tokens, got {sorted(added)};"
        " change config.model.tokenizer."
    )


def _chat_template(turns: dict[str, str], system: str, tokens: Sequence[str]) -> str:
    """The Jinja template of one turn format; it needs no more than filters any Jinja has."""
    literal = {name: _jinja_literal(text) for name, text in turns.items()}
    guard = "".join(
        f" | replace({_jinja_literal(t)}, {_jinja_literal(t[0] + ' ' + t[1:])})" for t in tokens
    )
    begin, middle = literal["open"], literal["after_role"]
    end = _jinja_literal(turns["close"] + turns["after_close"])
    return (
        f"{{{{- {literal['before']} }}}}"
        "{%- if messages[0].role != 'system' %}"
        f"{{{{- {begin} + 'system' + {middle} + {_jinja_literal(system)} + {end} }}}}"
        "{%- endif %}"
        "{%- for message in messages %}"
        "{%- if message.role not in ['system', 'user', 'assistant'] %}"
        "{{- raise_exception('role must be system, user or assistant, got ' + message.role) }}"
        "{%- endif %}"
        f"{{%- set content = message.content | trim{guard} %}}"
        f"{{{{- {begin} + message.role + {middle} + content + {end} }}}}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}"
        f"{{{{- {begin} + 'assistant' + {middle} }}}}"
        "{%- endif %}"
    )


def _jinja_literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def _cut_inside(text: str, tokens: Sequence[str]) -> list[str]:
    """The text in pieces, cut after the first character of each of the tokens in it."""
    pattern = "|".join(re.escape(token) for token in tokens)
    cuts = [match.start() + 1 for match in re.finditer(f"(?=(?:{pattern}))", text)]
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
