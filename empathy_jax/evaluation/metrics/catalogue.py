"""Every measure of an evaluation: its name, what it says, its tokens, and how it is summed up."""

import dataclasses
from collections.abc import Callable, Mapping

from empathy_jax import chain_of_empathy
from empathy_jax.evaluation.metrics import resampling
from empathy_jax.evaluation.metrics.overlap import BLEU_ORDER, corpus_bleu
from empathy_jax.evaluation.metrics.tokens import TOKENIZATIONS

GROUPS: Mapping[str, str] = {
    "form": "Form of the completion",
    "overlap": "Overlap with references",
    "models": "Under other models",
    "diversity": "Diversity and copying",
    "manner": "Manner of counselling, by plain phrases",
}
_TOKEN_NAMES = {"char": "characters", "jieba": "jieba words"}


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a measure is named, read and summed up.

    Attributes:
      label, meaning: for readers.
      group: key of GROUPS.
      tokens: the tokenization it counts, None where it counts none.
      percent: shown as a share of 100.
      digits: decimals shown.
      finish: from sums over questions to the measure, see `resampling.Sums`.
      headline: belongs into a short table.
      per_reference: compares with references, so that people are scored leave-one-out.
      of_answer: is about the answer, so that people's answers have it too.
    """

    label: str
    meaning: str
    group: str
    tokens: str | None = None
    percent: bool = False
    digits: int = 3
    finish: Callable = resampling.ratio
    headline: bool = False
    per_reference: bool = False
    of_answer: bool = True


def _form() -> dict[str, Measure]:
    def share(label: str, meaning: str, headline: bool = False) -> Measure:
        return Measure(label, meaning, "form", percent=True, headline=headline, of_answer=False)

    made = {
        "validity": share("chain validity", "completions that are a whole chain", True),
        "finished": share("finished", "completions that ended by themselves in time", True),
        "tokens": Measure(
            "completion length (tokens)", "chain and answer together, in the policy's tokens",
            "form", digits=0, headline=True, of_answer=False,
        ),
        "characters": Measure(
            "answer length (characters)", "white space not counted", "form", "char", digits=0,
            headline=True,
        ),
        "words": Measure("answer length (words)", "by jieba", "form", "jieba", digits=0),
    }  # fmt: skip
    for layer in chain_of_empathy.LAYERS:
        made[f"layer_{layer}"] = share(f"{layer} whole", "opened, closed, not blank, no tag inside")
    for rule, meaning in chain_of_empathy.RULES.items():
        made[f"rule_{rule}"] = share(f"breaks {rule}", f"first broken rule: {meaning}")
    return made


def _overlap() -> dict[str, Measure]:
    titles = {
        f"bleu_{n}": (f"BLEU-{n}", "of an answer, exponential smoothing") for n in range(1, 5)
    }
    titles |= {
        "rouge_1": ("ROUGE-1", "F of single tokens"),
        "rouge_2": ("ROUGE-2", "F of pairs of tokens"),
        "rouge_l": ("ROUGE-L", "F of the longest common subsequence"),
        "meteor": ("METEOR (exact)", "exact matches alone, no stems or synonyms"),
        "chrf": ("chrF2", "character n-grams up to 6"),
    }
    headlines = ("bleu_4_char_max", "rouge_l_char_max", "rouge_l_jieba_max", "chrf_char_max")
    made = {}
    for tokens in TOKENIZATIONS:
        for metric, (title, meaning) in titles.items():
            if metric == "chrf" and tokens != "char":
                continue
            for kind, which in (("max", "best reference"), ("mean", "mean reference")):
                name = f"{metric}_{tokens}_{kind}"
                made[name] = Measure(
                    f"{title}, {which}, {_TOKEN_NAMES[tokens]}", meaning, "overlap", tokens,
                    digits=4, headline=name in headlines, per_reference=True,
                )  # fmt: skip
        made[f"bleu_{BLEU_ORDER}_{tokens}_corpus"] = Measure(
            f"BLEU-{BLEU_ORDER} of the corpus, all references, {_TOKEN_NAMES[tokens]}",
            "counts clipped over the references, closest length; sums over all questions",
            "overlap", tokens, digits=4, finish=corpus_bleu, per_reference=True,
        )  # fmt: skip
    return made


def _models() -> dict[str, Measure]:
    made = {}
    for part in ("precision", "recall", "f1"):
        for kind, which in (("max", "best reference"), ("mean", "mean reference")):
            made[f"bertscore_{part}_{kind}"] = Measure(
                f"BERTScore {part}, {which}", "raw, without idf; tokens of the encoder", "models",
                "encoder", digits=4, headline=(part, kind) == ("f1", "max"), per_reference=True,
            )  # fmt: skip
    return made | {
        "perplexity": Measure(
            "perplexity of the answer", "after its question; geometric mean; low is not good",
            "models", "judging model", digits=1, finish=resampling.exp_ratio, headline=True,
        ),
        "similarity": Measure(
            "reward-model similarity", "cosine of question and answer; what RL optimises", "models",
            headline=True,
        ),
        "similarity_passes": Measure(
            "passes the reward model", "similarity at or above the calibrated threshold", "models",
            percent=True, headline=True,
        ),
        "quality": Measure("reward-model quality", "the grade of its head", "models"),
    }  # fmt: skip


def _diversity() -> dict[str, Measure]:
    made = {}
    for tokens in TOKENIZATIONS:
        for n, what in ((1, "tokens"), (2, "pairs of tokens")):
            made[f"distinct_{n}_{tokens}"] = Measure(
                f"Distinct-{n} per answer, {_TOKEN_NAMES[tokens]}",
                f"different {what} over all of an answer; falls with length", "diversity", tokens,
            )  # fmt: skip
            made[f"distinct_{n}_{tokens}_corpus"] = Measure(
                f"Distinct-{n} at equal length, {_TOKEN_NAMES[tokens]}",
                f"different {what} among as many of each, one answer to a question", "diversity",
                tokens, headline=(n, tokens) == (2, "char"),
            )  # fmt: skip
    return made | {
        "echo_overlap": Measure(
            "echo of the question", "4-grams of the answer that stand in the question", "diversity",
            "char", percent=True, headline=True,
        ),
        "template_overlap": Measure(
            "template overlap", "n-grams of the answer that answer other questions too; grows with "
            "the number of questions", "diversity", "char", percent=True, headline=True,
        ),
    }  # fmt: skip


def _manner() -> dict[str, Measure]:
    return {
        "reflections_to_questions": Measure(
            "reflections to questions", "all reflections over all questions asked", "manner",
            digits=2, headline=True,
        ),
        "advice_share": Measure(
            "advice share", "sentences that advise, of all", "manner", percent=True, headline=True
        ),
        "questions_asked": Measure("questions asked", "per answer", "manner", digits=2),
        "reflections": Measure("reflections", "per answer", "manner", digits=2),
    }  # fmt: skip


MEASURES: Mapping[str, Measure] = _form() | _overlap() | _models() | _diversity() | _manner()


def number(
    name: str, value: float | None, low: float | None = None, high: float | None = None
) -> str:
    """A value with its interval in the measure's unit; a dash where there is none."""
    if value is None:
        return "–"
    measure = MEASURES[name]
    scale, digits = (100.0, 1) if measure.percent else (1.0, measure.digits)
    text = f"{value * scale:.{digits}f}"
    if low is not None and high is not None:
        text += f" [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"
    return text + (" %" if measure.percent else "")
