import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from goodspeed.sampling.noise import MAX_GUMBEL, Domain, gumbel, position_keys, uniform

LIKELY = 1e-4
"""Fixed seeds: a statistic whose p-value falls below this once will do so on every run, and then it is no chance."""

KNOWN_KEYS = [[-574433422, -1074823120], [1826528099, 553425192], [-1446187728, 1765838926]]
KNOWN_DOMAINS = [
    [[1053116730, 980395069]],
    [[-73385109, -676340606]],
    [[-1214858390, 40383931]],
    [[128312592, -86878236]],
]
KNOWN_UNIFORMS = [1044043578, 1040242626, 1065293672]

Array = NDArray[np.float32]


def grid(seeds: range, positions: range, tokens: int, domain: Domain = Domain.SHARED) -> Array:
    """Uniforms of every (seed, position, token): float32 [seeds, positions, tokens]."""
    pairs = [(seed, position) for seed in seeds for position in positions]
    keys = position_keys([seed for seed, _ in pairs], [position for _, position in pairs], domain)
    u = uniform(keys[:, None, :], np.arange(tokens, dtype=np.int32))
    return u.reshape(len(seeds), len(positions), tokens)


def flatness(u: Array, bins: int = 100) -> float:
    """The p-value of a chi-square test against the uniform distribution."""
    return float(stats.chisquare(np.histogram(u, bins, (0.0, 1.0))[0]).pvalue)


def joint_flatness(u: Array, v: Array, bins: int = 20) -> float:
    """The p-value of a chi-square test of a pair against the uniform distribution on the square."""
    counts, _, _ = np.histogram2d(u.ravel(), v.ravel(), bins, ((0.0, 1.0), (0.0, 1.0)))
    return float(stats.chisquare(counts.ravel()).pvalue)


@pytest.mark.parametrize(
    ("seeds", "positions", "tokens"),
    [
        (range(1), range(1), 1_000_000),
        (range(1), range(1_000_000), 1),
        (range(1_000_000), range(1), 1),
        (range(100), range(100), 100),
        (range(2**62, 2**62 + 10), range(2**30, 2**30 + 1000), 100),
    ],
)
def test_uniform_along_every_axis(seeds: range, positions: range, tokens: int) -> None:
    u = grid(seeds, positions, tokens).ravel()
    assert flatness(u) > LIKELY
    assert stats.kstest(u, "uniform").pvalue > LIKELY


def test_the_small_uniforms_are_uniform_too() -> None:
    """They make the largest Gumbel numbers, which decide every draw."""
    u = grid(range(40), range(5), 151_936).ravel()
    small = u[u < 1e-3] * 1e3
    assert abs(len(small) - len(u) * 1e-3) < 5 * np.sqrt(len(u) * 1e-3)
    assert flatness(small, 50) > LIKELY


def test_gumbel_distribution() -> None:
    keys = position_keys([7] * 1000, range(1000))
    g = gumbel(keys[:, None, :], np.arange(1000, dtype=np.int32)).ravel().astype(np.float64)
    n = len(g)
    assert abs(g.mean() - np.euler_gamma) < 4 * np.sqrt(np.pi**2 / 6 / n)
    assert abs(g.var() - np.pi**2 / 6) < 0.02
    assert abs(stats.skew(g) - 1.1395) < 0.02
    assert stats.kstest(g, "gumbel_r").pvalue > LIKELY


def test_no_noise_is_larger_than_promised() -> None:
    smallest = torch.tensor([2.0**-32])
    assert float(-torch.log(-torch.log1p(-smallest))) < MAX_GUMBEL
    g = gumbel(position_keys([3], [5])[:, None, :], np.arange(2_000_000, dtype=np.int32))
    assert np.isfinite(g).all()
    assert g.max() < MAX_GUMBEL


@pytest.mark.parametrize("lag", [1, 2, 4, 8, 16, 64])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_independent(axis: int, lag: int) -> None:
    u = np.moveaxis(grid(range(100), range(100), 100), axis, 0)
    near, far = u[:-lag].ravel(), u[lag:].ravel()
    assert abs(np.corrcoef(near, far)[0, 1]) < 4.5 / np.sqrt(len(near))
    assert joint_flatness(near, far) > LIKELY


@pytest.mark.parametrize("bit", range(63))
def test_seeds_that_differ_in_one_bit_are_independent(bit: int) -> None:
    ours, theirs = (grid(range(seed, seed + 1), range(100), 100) for seed in (5, 5 ^ (1 << bit)))
    assert joint_flatness(ours, theirs, 10) > LIKELY


@pytest.mark.parametrize("first", Domain)
@pytest.mark.parametrize("second", Domain)
def test_domains_are_independent(first: Domain, second: Domain) -> None:
    ours, theirs = (grid(range(20), range(100), 100, domain) for domain in (first, second))
    assert flatness(ours) > LIKELY
    if first != second:
        assert joint_flatness(ours, theirs) > LIKELY
    else:
        assert np.array_equal(ours, theirs)


def test_swapping_seed_and_position_changes_everything() -> None:
    u = grid(range(300), range(300), 1)[:, :, 0]
    above = np.triu_indices(300, 1)
    assert joint_flatness(u[above], u.T[above]) > LIKELY


def test_keys_do_not_collide() -> None:
    """A million 64-bit keys: the chance of a single repetition is 3e-8."""
    keys = position_keys(np.repeat(np.arange(1000), 1000).tolist(), np.tile(np.arange(1000), 1000).tolist())
    assert len(np.unique(keys, axis=0)) == len(keys)
    apart = [position_keys(range(1000), [0] * 1000, domain) for domain in Domain]
    assert len(np.unique(np.concatenate(apart), axis=0)) == 4000


def test_numbers_collide_as_often_as_chance_has_it() -> None:
    """Birthdays: n draws of 2**31 values repeat n^2 / 2^32 times; over different keys, as under one."""
    u = grid(range(1), range(500), 1000).ravel().astype(np.float64)
    fine = u[u < 0.004]  # where float32 still tells the 2**31 values apart
    n, values = len(fine), 0.004 * 2**31
    expected = n * n / (2 * values)
    repeated = n - len(np.unique(fine))
    assert abs(repeated - expected) < 5 * np.sqrt(expected + 1)


def test_the_winner_among_equals_is_uniform() -> None:
    """What the noise is for: an argmax over equal scores draws every token equally often."""
    keys = position_keys([11] * 50_000, range(50_000))
    winners = gumbel(keys[:, None, :], np.arange(20, dtype=np.int32)).argmax(-1)
    counts = np.bincount(winners, minlength=20)
    assert stats.chisquare(counts).pvalue > LIKELY
    serial = np.histogram2d(winners[:-1], winners[1:], 20)[0]
    assert stats.chisquare(serial.ravel()).pvalue > LIKELY


seeds = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)


@given(seeds, st.integers(0, 2**40), st.sampled_from(Domain), st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_numpy_and_torch_agree_to_the_bit(
    some_seeds: list[int], position: int, domain: Domain, tokens: list[int]
) -> None:
    keys = position_keys(some_seeds, [position] * len(some_seeds), domain)[:, None, :]
    lanes = np.asarray(tokens, dtype=np.int32)
    ours, theirs = uniform(keys, lanes), uniform(torch.from_numpy(keys), torch.from_numpy(lanes))
    assert ours.dtype == np.float32
    assert theirs.dtype == torch.float32
    assert np.array_equal(ours.view(np.int32), theirs.numpy().view(np.int32))
    noise = gumbel(torch.from_numpy(keys), torch.from_numpy(lanes)).numpy()
    np.testing.assert_allclose(gumbel(keys, lanes), noise, rtol=1e-5, atol=1e-6)


@given(seeds, st.permutations(range(30)), st.integers(0, 1000))
def test_any_index_in_any_order_is_the_whole(some_seeds: list[int], order: list[int], start: int) -> None:
    count = len(some_seeds)
    positions = range(start, start + count)
    keys = position_keys(some_seeds, positions)
    whole = gumbel(keys[:, None, :], np.arange(30, dtype=np.int32))
    tokens = np.asarray(order, dtype=np.int32)
    assert np.array_equal(gumbel(keys[:, None, :], tokens), whole[:, order])
    for row in range(count):
        alone = position_keys([some_seeds[row]], [positions[row]])
        assert np.array_equal(alone, keys[row : row + 1])
        assert gumbel(alone, tokens[:1])[0] == whole[row, order[0]]


def test_known_answers() -> None:
    """The randomness is part of the protocol: agents and servers of one version must hold the same numbers."""
    keys = position_keys([0, 1, 2**63 - 1], [0, 1, 2**31], Domain.SHARED)
    assert keys.tolist() == KNOWN_KEYS
    assert [position_keys([42], [7], domain).tolist() for domain in Domain] == KNOWN_DOMAINS
    u = uniform(keys, np.asarray([0, 151_935, 2**31 - 1], dtype=np.int32))
    assert u.view(np.int32).tolist() == KNOWN_UNIFORMS


def test_nobody_draws_nothing() -> None:
    keys = position_keys([], [])
    assert keys.shape == (0, 2)
    assert uniform(keys, np.zeros(1, dtype=np.int32)).shape == (0,)


def test_the_core_needs_no_torch() -> None:
    pure = "estimation, messages, rounds, sampling, scheduling, snapshot, stream, utility, verification"
    imports = f"from goodspeed import {pure}"
    program = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
