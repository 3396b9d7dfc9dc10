"""All-pairs forms against the double loop, and what the theorem says they must be."""

import numpy as np
import pandas as pd
import pytest
import torch

from sept import margins as mg
from sept.config import SeptError


def double_loop(q, z, z_new):
    """Slope, R^2 and order agreement by visiting every pair."""
    sxy = sxx = syy = same = total = 0.0
    for i in range(len(q)):
        for j in range(i + 1, len(q)):
            w, x, y = q[i] * q[j], z[i] - z[j], z_new[i] - z_new[j]
            sxy, sxx, syy = sxy + w * x * y, sxx + w * x * x, syy + w * y * y
            if x != 0:
                total += w
                same += w * (1.0 if x * y > 0 else 0.5 if y == 0 else 0.0)
    with np.errstate(invalid="ignore"):
        return sxy / sxx, sxy**2 / (sxx * syy), same / total


def logits(n, v, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 2, (n, v))
    new = 1.4 * old + rng.normal(0, 1.5, (n, v))
    if ties:
        old, new = old.round(), new.round()
    return torch.from_numpy(old), torch.from_numpy(new)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("v", [2, 7, 64, 300])
def test_all_pairs_forms_equal_the_double_loop(v, ties):
    old, new = logits(3 if v < 300 else 1, v, seed=v, ties=ties)
    table = mg.prefix_statistics(old, new, 0.6)
    q = torch.softmax(old / 0.6, -1).numpy()
    for i in range(len(table)):
        slope, r2, agreement = double_loop(q[i], old[i].numpy(), new[i].numpy())
        assert table["slope"][i] == pytest.approx(slope, abs=1e-10)
        assert table["r2"][i] == pytest.approx(r2, abs=1e-10, nan_ok=True)
        assert table["order_agreement"][i] == pytest.approx(agreement, abs=1e-10)
        even = np.full(v, 1 / v)
        flat = double_loop(even, old[i].numpy(), new[i].numpy())[0]
        assert table["slope_unweighted"][i] == pytest.approx(flat, abs=1e-10)


@pytest.mark.parametrize(("tau_s", "tau_t"), [(0.5, 1.0), (0.6, 1.0), (1.25, 1.0), (0.6, 0.8)])
def test_the_theorem_s_optimum_has_its_slope(tau_s, tau_t):
    old, _ = logits(5, 50)
    new = tau_t / tau_s * old + torch.arange(5)[:, None]  # up to a constant per prefix
    table = mg.prefix_statistics(old, new, tau_s, tau_t)
    for column in ("slope", "slope_unweighted", "slope_top_p"):
        assert table[column].to_numpy() == pytest.approx(tau_t / tau_s, abs=1e-12)
    assert table["r2"].to_numpy() == pytest.approx(1, abs=1e-12)
    assert table["kl"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert (table["order_agreement"] == 1).all()


def test_the_tail_counts_by_its_probability():
    """A tail that was never drawn and did not move spoils the unweighted slope only."""
    old = torch.cat([torch.tensor([[4.0, 3.0, 2.0]]), torch.linspace(-20, -30, 200)[None]], 1).double()
    new = old.clone()
    new[:, :3] *= 1 / 0.6
    table = mg.prefix_statistics(old, new, 0.6)
    assert table["slope"][0] == pytest.approx(1 / 0.6, abs=1e-6)
    assert abs(table["slope_unweighted"][0] - 1 / 0.6) > 0.3


def test_nucleus_is_the_fewest_tokens():
    q = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    assert mg.nucleus(q, 0.8)[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert mg.nucleus(q, 0.81)[0, 2] > 0


def test_masked_tokens_are_left_out():
    """Padded vocabulary rows: -inf in both models."""
    old, new = logits(2, 20)
    padded = [torch.cat([x, torch.full((2, 4), -torch.inf, dtype=x.dtype)], 1) for x in (old, new)]
    expected, got = mg.prefix_statistics(old, new, 0.6), mg.prefix_statistics(*padded, 0.6)
    pd.testing.assert_frame_equal(expected, got, atol=1e-12)


def test_aggregate_weighs_by_spread_and_resamples_sequences():
    old, _ = logits(40, 30)
    new = torch.where((torch.arange(40) < 20)[:, None], 2 * old, 1 * old)
    table = mg.prefix_statistics(old, new, 1.0)
    got = mg.aggregate(table, [i // 4 for i in range(40)])
    weights = table["var"].to_numpy()
    assert got["slope"] == pytest.approx((weights[:20].sum() * 2 + weights[20:].sum()) / weights.sum())
    assert got["lo"] < got["slope"] < got["hi"] and got["sequences"] == 10 and got["prefixes"] == 40
    alone = mg.aggregate(table, range(40))
    assert alone["hi"] - alone["lo"] < got["hi"] - got["lo"], "answers, not prefixes, are independent"


def test_rare_margins_by_decade():
    old = torch.tensor([[5.0, 4.0, 5 + np.log(1e-3), 5 + np.log(1e-6)]]).double()
    new = old * torch.tensor([2.0, 2.0, 2.0, 2.0])
    new[0, 3] = new[0, 0] - (old[0, 0] - old[0, 3]) * 1.1  # the rarest margin hardly grew
    sums = mg.tail_sums(old, new, 1.0)
    growth = (sums[:, 0] / sums[:, 1]).tolist()
    assert sums[:, 2].tolist() == [1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0]
    assert growth[3] == pytest.approx(2) and growth[6] == pytest.approx(1.1)


def test_threads_and_blocks_change_nothing(monkeypatch):
    old, new = logits(23, 40)
    expected = mg.prefix_statistics(old, new, 0.6)
    monkeypatch.setattr(mg, "_BLOCK", 80)
    pd.testing.assert_frame_equal(mg.prefix_statistics(old, new, 0.6, threads=3), expected, rtol=1e-12)
    assert torch.get_num_threads() == 1
    assert len(mg.prefix_statistics(old[:0], new[:0], 0.6)) == 0


def test_float32_is_good_to_five_digits_at_a_real_vocabulary():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(4, 151_936, generator=generator) * 3
    old[:, :5] += 14
    new = old * 1.6 + torch.randn(4, 151_936, generator=generator) * 0.1
    exact = mg.prefix_statistics(old.double(), new.double(), 0.6, order=False)
    single = mg.prefix_statistics(old, new, 0.6, order=False)
    for column in ("slope", "r2", "kl", "intercept"):
        assert single[column].to_numpy() == pytest.approx(exact[column].to_numpy(), rel=1e-5, abs=5e-5)


def test_a_probe_measures_what_changed_and_nothing_else():
    from sept.policy import load_policy
    from sept.problems import load_problems
    from sept.sampling import make_sampler

    policy = load_policy("H")
    questions = load_problems("toy:train").batch(0, 16, 0)
    probe = mg.Probe(policy, make_sampler(policy), questions, 0, 56, "toy")
    before = probe.logits(policy)
    same = probe.measure(policy, before, 0.6, 1.0)
    assert all(same[k] == pytest.approx(1, abs=1e-5) for k in same if k.startswith("slope"))
    policy.model.model.norm.weight.data.mul_(1.2)
    half = probe.logits(policy)
    policy.model.model.norm.weight.data.mul_(1.25)
    got = probe.measure(policy, half, 0.6, 1.0)
    kinds = {"slope style", "slope digit", "slope format", "slope end"}
    assert kinds <= set(got)
    for name in ("slope", *kinds):
        assert got[name] == pytest.approx(1.5, abs=1e-4), name
    assert got["slope round"] == pytest.approx(1.25, abs=1e-4) and got["slope r2"] > 0.999


def test_bad_input():
    old, new = logits(2, 8)
    with pytest.raises(SeptError, match="share a tokenizer"):
        mg.prefix_statistics(old, new[:, :7], 0.6)
    with pytest.raises(SeptError, match="tau_s"):
        mg.prefix_statistics(old, new, 0.0)
    new[0, 0] = torch.nan
    with pytest.raises(SeptError, match="not finite"):
        mg.prefix_statistics(old, new, 0.6)
    flat = mg.prefix_statistics(torch.zeros(2, 8), torch.zeros(2, 8), 0.6, order=False)
    with pytest.raises(SeptError, match="no prefix has any spread"):
        mg.aggregate(flat, [0, 1])
