"""Who ranks what, in which order on the page: balanced by construction, random otherwise."""

import numpy as np


def williams_square(systems: int) -> np.ndarray:
    """Rows that balance positions and first-order carry-over.

    In the rows every system stands in every position equally often, and follows every other system
    equally often (Williams 1949, https://doi.org/10.1071/CH9490149). An odd number of systems needs
    two squares, one the mirror of the other.

    Returns:
      int array [systems, systems], or [2 * systems, systems] for an odd number of systems.
    """
    steps = np.arange(systems)
    first = np.where(steps % 2 == 1, (steps + 1) // 2, (systems - steps // 2) % systems)
    square = (first[None, :] + steps[:, None]) % systems
    return square if systems % 2 == 0 else np.concatenate([square, square[:, ::-1]])


def display_orders(rng: np.random.Generator, count: int, systems: int) -> np.ndarray:
    """Orders of the systems on the page: Williams squares, relabelled and shuffled block by block.

    Returns:
      int array [count, systems]; in any position two systems' counts differ by no more than one
      for an even number of systems, by two for an odd one.
    """
    square = williams_square(systems)
    blocks = [
        rng.permutation(systems)[rng.permutation(square)] for _ in range(-(-count // len(square)))
    ]
    return np.concatenate([np.empty((0, systems), np.int64), *blocks])[:count]


def assign(
    rng: np.random.Generator, items: int, raters: int, raters_per_item: int
) -> list[list[int]]:
    """Items of each rater: every item has `raters_per_item` raters, loads differ by one at most."""
    load = np.zeros(raters, np.int64)
    given: list[list[int]] = [[] for _ in range(raters)]
    for item in rng.permutation(items):
        chosen = np.lexsort((rng.random(raters), load))[:raters_per_item]
        load[chosen] += 1
        for rater in chosen:
            given[rater].append(int(item))
    return given


def session(
    rng: np.random.Generator, items: list[int], checks: int, repeats: int
) -> list[tuple[str, int]]:
    """One rater's trials in order, as (kind, index): items, attention checks, repeated items.

    An item that is repeated is among the first third and comes again in the last third. Checks are
    anywhere but at the very start.

    Args:
      items: at least `3 * repeats` indices.
      checks: how many attention checks there are, each shown once.
    """
    order = [("item", int(index)) for index in rng.permutation(items)]
    third = len(order) // 3
    again = [order[index][1] for index in rng.permutation(third)[:repeats]]
    tail = order[len(order) - third :] + [("repeat", index) for index in again]
    order = order[: len(order) - third] + [tail[index] for index in rng.permutation(len(tail))]
    for check in rng.permutation(checks):
        order.insert(int(rng.integers(1, len(order) + 1)), ("check", int(check)))
    return order


def position_counts(orders: np.ndarray) -> np.ndarray:
    """How often each system stood in each position: [systems, positions] of orders [N, systems]."""
    systems = orders.shape[1]
    return np.stack([(orders == system).sum(0) for system in range(systems)])
