"""A conversation's events as bodies of the OpenAI protocol: whole, or a part at a time."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from empathy_jax.serving import chat, guarded, protocol
from empathy_jax.serving.chat import Conversation, Ended, Event, HeldBack
from empathy_jax.serving.sample_text import Delta


async def whole(conversation: Conversation, head: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The body of a completion that is not streamed.

    Args:
      conversation: to be heard to its end.
      head: id, created and model.
      n: samples that were asked for.
    """
    told: list[dict[bool, str]] = [{True: "", False: ""} for _ in range(n)]
    held_back: list[list[str]] = [[] for _ in range(n)]
    ends: list[Ended | None] = [None] * n
    async for sample, what in conversation.events:
        if isinstance(what, Ended):
            ends[sample] = what
        elif isinstance(what, HeldBack):
            held_back[sample].append(what.code)
        else:
            told[sample][what.reasoning] += what.text
    choices = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": texts[False],
                "reasoning_content": texts[True] or None,
                "refusal": None,
                **_judged(end),
                **_guarded(conversation, held_back[index]),
            },
            "finish_reason": end.reason,
            "logprobs": None,
        }
        for index, (texts, end) in enumerate(zip(told, ends, strict=True))
    ]
    used = protocol.usage(conversation.prompt_tokens, sum(end.tokens for end in ends))
    return {**head, "object": "chat.completion", "choices": choices, "usage": used}


async def streamed(
    conversation: Conversation, first: Event, head: Mapping[str, Any], with_usage: bool
) -> AsyncIterator[bytes]:
    """The events of a streamed completion.

    Args:
      conversation: the rest of it.
      first: its first event, which has been taken out.
      head: id, created and model.
      with_usage: whether the counted tokens are a part of their own at the end.
    """
    made, begun, answered, event = 0, set(), set(), first
    held_back: dict[int, list[str]] = {}
    extra = {"usage": None} if with_usage else {}
    async with contextlib.aclosing(conversation.events) as events:
        while event is not None:
            sample, what = event
            delta = {} if sample in begun else {"role": "assistant"}
            begun.add(sample)
            reason = None
            if isinstance(what, Ended):
                made += what.tokens
                delta, reason = {**delta, **_judged(what)}, what.reason
            elif isinstance(what, HeldBack):
                held_back.setdefault(sample, []).append(what.code)
                delta |= _guarded(conversation, held_back[sample])
            else:
                delta |= _part(what)
                if not what.reasoning and sample not in answered:
                    answered.add(sample)
                    delta |= _guarded(conversation, held_back.get(sample, []))
            yield protocol.event({**protocol.chunk(head, sample, delta, reason), **extra})
            try:
                event = await anext(events, None)
            except protocol.Refused as refused:
                # The status line is long gone; clients take this for an error.
                yield protocol.event(refused.body)
                return
    if with_usage:
        used = protocol.usage(conversation.prompt_tokens, made)
        last = {**head, "object": "chat.completion.chunk", "choices": [], "usage": used}
        yield protocol.event(last)
    yield protocol.DONE


def _part(delta: Delta) -> dict[str, Any]:
    if delta.reasoning:
        return {"reasoning_content": delta.text, "layer": delta.layer}
    return {"content": delta.text}


def _guarded(conversation: Conversation, held_back: Sequence[str]) -> dict[str, Any]:
    """What the guard says of a sample, with the codes of all that it has withheld so far."""
    if conversation.decision is None:
        return {}
    return {"guard": guarded.wire(conversation.decision, held_back)}


def _judged(end: chat.Ended) -> dict[str, Any]:
    return {"chain": None if end.chain is None else dict(end.chain), "rule": end.rule}
