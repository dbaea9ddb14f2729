"""The numbers behind benchmarks/table2.py and table3.py, against quadrature and brute force."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import table2
import table3
import torch
from scipy.integrate import quad
from scipy.stats import norm

epmcm = import_module("harness.methods.epmcm")
statistics = import_module("harness.methods._class_statistics")


def test_means_of_two_classes_are_those_of_quadrature() -> None:
    gap, variance = 1.3, 0.8  # of the predicted class over the other
    covariance = torch.tensor([[[variance, 0.0], [0.0, 0.0]]] * 2, dtype=torch.float64)
    logits = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    found = table2.means(logits, epmcm.matrix_root(covariance), [100, 200_000], draw)
    density = norm(gap, variance**0.5).pdf
    literal = quad(lambda d: density(d) / (1 + np.exp(d)), -10, 12)[0]
    assert float(found[200_000][0][0]) == pytest.approx(literal, rel=0.01)
    bound = np.exp(-gap + variance / 2)  # E[exp(-d)] of a normal d, which is E[1/p - 1]
    assert float(found[200_000][1][0]) == pytest.approx(bound, rel=0.02)
    table = torch.tensor([[0.0, variance], [variance, 0.0]], dtype=torch.float64)
    assert float(epmcm.log_change(logits, table).exp()) == pytest.approx(bound)
    assert bound > literal


def test_means_of_logits_are_those_of_sampled_features_and_are_nested() -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    learned = statistics.ClassStatistics(3, "full")
    learned.update(torch.randn(90, 5, generator=draw, dtype=torch.float64) * 0.4, torch.arange(90) % 3)
    features = torch.randn(2, 5, generator=draw, dtype=torch.float64)
    logits = features @ weight.T
    root = epmcm.matrix_root(learned.logit_covariance(weight))
    found = table2.means(logits, root, [1000, 100_000], torch.Generator().manual_seed(2))
    predicted = logits.argmax(1)
    sampled = table3.drawn(features, learned.covariance[predicted], 100_000, draw)
    p = (sampled @ weight.T).softmax(2).gather(2, predicted[:, None, None].expand(-1, 100_000, 1))[..., 0]
    assert found[100_000][0].tolist() == pytest.approx((1 - p).mean(1).tolist(), rel=0.02)
    assert found[100_000][1].tolist() == pytest.approx((1 / p - 1).mean(1).tolist(), rel=0.05)
    alone = table2.means(logits, root, [1000], torch.Generator().manual_seed(2))
    assert torch.equal(alone[1000][0], found[1000][0])
    bound = epmcm.log_change(logits, learned.table(weight)).exp()
    assert bound.tolist() == pytest.approx(found[100_000][1].tolist(), rel=0.05)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_draws_have_the_covariance_of_their_class(kind: str) -> None:
    root = torch.tensor([[1.0, 0.0], [0.7, 0.2]], dtype=torch.float64)
    full = root @ root.T
    covariance = full.diagonal() if kind == "diagonal" else full
    centre = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    draws = table3.drawn(centre, covariance[None], 100_000, torch.Generator().manual_seed(0))[0]
    assert draws.mean(0).tolist() == pytest.approx([3.0, -1.0], abs=0.02)
    expected = torch.diag(covariance) if kind == "diagonal" else full
    assert torch.allclose(torch.cov(draws.T, correction=0), expected, atol=0.02)


def test_every_column_of_table_2_has_a_name_of_its_own() -> None:
    found = {100: (torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.5]))}
    (row,) = table2.compared(torch.tensor([0.4, 0.6]), found)
    assert len(row) == len(table2.HEADS) == len({*table2.HEADS})


def test_rows_of_table_3_name_the_method_that_selected() -> None:
    found = table3.named("Maxp+", [4, 2, 7], torch.arange(10), 2, torch.Generator().manual_seed(0))
    assert [*found] == ["Maxp+", "random"] and found["Maxp+"] == [4, 2] and len(found["random"]) == 2
    assert len(table3.named("random", [4], torch.arange(10), 1, torch.Generator())) == 2


def test_of_a_large_pool_the_selected_and_some_others_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table3, "MOST", 20)
    pool, selected = torch.arange(500, 900), {"Maxp+": [899, 500], "random": [700]}
    few = table3.within_memory(pool[:20], selected, torch.Generator().manual_seed(0))
    assert few.equal(pool[:20]), "all"
    held = table3.within_memory(pool, selected, torch.Generator().manual_seed(0))
    assert 20 <= len(held) <= 23 and {500, 700, 899} <= {*held.tolist()} <= {*pool.tolist()}
    assert held.equal(held.unique()), "each once, ascending"


def test_the_nearest_candidate_is_another_image() -> None:
    pool = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    draws = torch.tensor([[[0.0, 0.1], [0.0, 1.9], [0.9, 0.0]]])
    nearest, ((between, different, distance),) = table3.spread(draws, pool, torch.tensor([0]))
    assert nearest.tolist() == [[1, 2, 1]], "its own row 0 does not count"
    pairs = [np.hypot(0, 1.8), np.hypot(0.9, 0.1), np.hypot(0.9, 1.9)]
    assert between == pytest.approx(np.mean(pairs)) and different == 2
    assert distance == pytest.approx(np.mean([np.hypot(1, 0.1), 0.1, 0.1]))


def test_the_decoder_learns_what_features_say_of_images() -> None:
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    features = torch.rand(200, 2, generator=draw)
    images = features[:, 0, None, None, None].expand(-1, 1, 5, 6)
    decoder, error, baseline = table3.decoder_of(features, images, 60, draw)
    assert decoder(features[:3]).shape == (3, 1, 5, 6)
    assert error < 0.5 * baseline


def test_large_images_are_shrunk_batch_by_batch() -> None:
    rows = np.random.default_rng(0).integers(0, 256, (300, 4, 96, 3), dtype=np.uint8)
    read: list[int] = []

    class Read:
        shape = rows.shape

        def __getitem__(self, indices: np.ndarray) -> np.ndarray:
            read.append(len(indices))
            return rows[indices]

    indices = np.arange(299, -1, -1)
    shown = table3.small(Read(), indices)
    assert shown.shape == (300, 3, 64, 3) and shown.dtype == np.uint8 and max(read) <= table3.BATCH
    alone = table3.small(Read(), indices[7:8])
    np.testing.assert_array_equal(shown[7], alone[0])
    assert abs(float(shown.mean()) - float(rows.mean())) < 1
    np.testing.assert_array_equal(table3.small(rows[:, :, :64], indices), rows[::-1, :, :64])
