import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from dsn_ray.objective import MemoryBank


class SlowBank:
    """The bank by loops: a list of features per class."""

    def __init__(self, num_classes, k):
        self.kept = [[] for _ in range(num_classes)]
        self.k = k

    def update(self, sketches, sketch_labels, images, image_labels):
        for c in range(len(self.kept)):
            new = [f for f, y in zip(sketches, sketch_labels, strict=True) if y == c]
            photos = [f for f, y in zip(images, image_labels, strict=True) if y == c]
            candidates = self.kept[c] + new
            if photos and new:
                mean = torch.stack(photos).mean(0)
                candidates = sorted(
                    candidates, key=lambda f: -float(cosine_similarity(f, mean, dim=0))
                )
            self.kept[c] = candidates[: self.k]


class SlowReleasedBank:
    """The released code's bank, told in loops: one row of k places per class."""

    def __init__(self, num_classes, k, dim):
        self.rows = [[torch.zeros(dim) for _ in range(k)] for _ in range(num_classes)]
        self.count = [0] * num_classes
        self.k = k

    def update(self, sketches, sketch_labels, images, image_labels):
        for sketch, c in zip(sketches, sketch_labels.tolist(), strict=True):
            if self.count[c] < self.k:
                self.rows[c][self.count[c]] = sketch
                self.count[c] += 1
                continue
            photos = [f for f, y in zip(images, image_labels.tolist(), strict=True) if y == c]
            if not photos:
                continue
            mean = torch.stack(photos).mean(0)
            scores = [float(cosine_similarity(f, mean, dim=0)) for f in self.rows[c]]
            furthest = scores.index(min(scores))
            if float(cosine_similarity(sketch, mean, dim=0)) > scores[furthest]:
                self.rows[furthest] = [sketch] * self.k


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 100_000), st.integers(4, 6), st.integers(1, 4))
def test_the_released_rule_equals_its_loops(seed, classes, k):
    generator = torch.Generator().manual_seed(seed)
    bank, slow = MemoryBank(classes, k, 6, "release"), SlowReleasedBank(classes, k, 6)
    for _ in range(4):
        batch = random_batch(generator, classes, 6)
        bank.update(*batch)
        slow.update(*batch)
    assert bank.filled_places.tolist() == slow.count
    prototypes, filled = bank.prototypes()
    for c in range(classes):
        torch.testing.assert_close(bank.features[c], torch.stack(slow.rows[c]))
        if filled[c]:
            mean = torch.stack(slow.rows[c][: slow.count[c]]).mean(0)
            torch.testing.assert_close(prototypes[c], mean)


def test_the_released_rule_writes_into_another_class():
    bank = MemoryBank(3, 2, 2, "release")
    label, photo = torch.tensor([2]), torch.tensor([[1.0, 0.0]])
    for sketch in ([0.0, 1.0], [1.0, 1.0], [1.0, 0.0]):
        bank.update(torch.tensor([sketch]), label, photo, label)
    assert bank.features[2].tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert bank.features[0].tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_a_cleared_bank_is_empty():
    bank = MemoryBank(1, 2, 2)
    labels = torch.tensor([0])
    bank.update(torch.ones(1, 2), labels, torch.ones(1, 2), labels)
    bank.clear()
    assert not bank.prototypes()[1].any()
    assert not bank.features.any()


def random_batch(generator, classes, dim):
    sizes = torch.randint(0, 12, (2,), generator=generator).tolist()
    batch = []
    for n in sizes:
        batch.append(torch.randn(n, dim, generator=generator))
        batch.append(torch.randint(classes, (n,), generator=generator))
    return batch


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 100_000), st.integers(1, 5), st.integers(1, 4))
def test_equals_a_slow_bank_over_several_batches(seed, classes, k):
    generator = torch.Generator().manual_seed(seed)
    bank, slow = MemoryBank(classes, k, 6), SlowBank(classes, k)
    for _ in range(4):
        batch = random_batch(generator, classes, 6)
        bank.update(*batch)
        slow.update(*batch)
        for c in range(classes):
            kept = bank.features[c, : int(bank.filled_places[c])]
            assert sorted(kept.tolist()) == sorted(one.tolist() for one in slow.kept[c])
    prototypes, filled = bank.prototypes()
    for c in range(classes):
        assert bool(filled[c]) == bool(slow.kept[c])
        expected = torch.stack(slow.kept[c]).mean(0) if slow.kept[c] else torch.zeros(6)
        torch.testing.assert_close(prototypes[c], expected)


def test_keeps_the_most_photo_like_sketches():
    bank = MemoryBank(1, 2, 2)
    sketches = torch.tensor([[0.0, 1.0], [1.0, 0.1], [1.0, 1.0], [-1.0, 0.0]])
    bank.update(
        sketches,
        torch.zeros(4, dtype=torch.long),
        torch.tensor([[2.0, 0.0]]),
        torch.zeros(1, dtype=torch.long),
    )
    assert torch.equal(bank.features[0], sketches[[1, 2]])


def test_a_class_without_photos_only_fills_free_places():
    bank = MemoryBank(2, 2, 2)
    no_photos = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    first = torch.tensor([[1.0, 0.0]])
    bank.update(first, torch.tensor([1]), *no_photos)
    more = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    bank.update(more, torch.tensor([1, 1]), *no_photos)
    assert torch.equal(bank.features[1], torch.stack([first[0], more[0]]))
    assert bank.filled_places.tolist() == [0, 2]


def test_ties_go_to_what_is_there_already():
    bank = MemoryBank(1, 1, 2)
    label, photo = torch.tensor([0]), torch.tensor([[1.0, 0.0]])
    bank.update(torch.tensor([[2.0, 0.0]]), label, photo, label)
    bank.update(torch.tensor([[3.0, 0.0]]), label, photo, label)
    assert bank.features[0].tolist() == [[2.0, 0.0]]


def test_loss_is_the_mean_negative_cosine_over_photos_with_a_prototype():
    generator = torch.Generator().manual_seed(3)
    bank = MemoryBank(4, 3, 5)
    bank.update(
        torch.randn(6, 5, generator=generator),
        torch.tensor([0, 0, 1, 1, 1, 1]),
        torch.randn(2, 5, generator=generator),
        torch.tensor([0, 1]),
    )
    images = torch.randn(4, 5, generator=generator).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    loss = bank.loss(images, labels)
    prototypes, _ = bank.prototypes()
    expected = (
        -sum(
            float(images[i] @ prototypes[i] / images[i].norm() / prototypes[i].norm())
            for i in (0, 1)
        )
        / 2
    )
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert (images.grad[:2].abs().sum(dim=1) > 0).all()
    assert torch.equal(images.grad[2:], torch.zeros(2, 5))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 100_000), st.integers(1, 5), st.integers(1, 4))
def test_loss_equals_the_slow_loop(seed, classes, k):
    generator = torch.Generator().manual_seed(seed)
    bank, slow = MemoryBank(classes, k, 6).double(), SlowBank(classes, k)
    for _ in range(2):
        batch = [
            t.double() if t.is_floating_point() else t for t in random_batch(generator, classes, 6)
        ]
        bank.update(*batch)
        slow.update(*batch)
    images, labels = batch[2].requires_grad_(), batch[3]
    cosines = []
    for image, c in zip(images.detach(), labels.tolist(), strict=True):
        if slow.kept[c]:
            prototype = sum(slow.kept[c]) / len(slow.kept[c])
            cosines.append(float(image @ prototype / image.norm() / prototype.norm()))
    loss = bank.loss(images, labels)
    assert float(loss.detach()) == pytest.approx(
        -sum(cosines) / len(cosines) if cosines else 0.0, abs=1e-9
    )
    loss.backward()
    for gradient, c in zip(images.grad, labels.tolist(), strict=True):
        # One place may hold the photo's own direction only by chance, so any pull shows.
        assert bool(gradient.any()) == bool(slow.kept[c])


def test_among_equals_the_first_places_are_kept():
    bank = MemoryBank(1, 3, 2)
    labels, photo = torch.zeros(4, dtype=torch.long), torch.tensor([[1.0, 0.0]])
    lengths = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    bank.update(lengths * photo, labels, photo, labels[:1])
    assert bank.features[0, :, 0].tolist() == [1.0, 2.0, 3.0]
    bank.update(torch.tensor([[0.0, 9.0], [8.0, 0.0]]), labels[:2], photo, labels[:1])
    assert bank.features[0, :, 0].tolist() == [1.0, 2.0, 3.0]


def test_no_gradient_reaches_the_sketches_and_none_is_kept():
    bank = MemoryBank(1, 2, 3)
    sketches = torch.randn(2, 3, requires_grad=True)
    images = torch.randn(2, 3, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.long)
    bank.update(sketches, labels, images, labels)
    assert not bank.features.requires_grad
    bank.loss(images, labels).backward()
    assert sketches.grad is None


def test_an_empty_bank_gives_zero():
    images = torch.randn(2, 3, requires_grad=True)
    loss = MemoryBank(2, 1, 3).loss(images, torch.tensor([0, 1]))
    loss.backward()
    assert float(loss) == 0.0
    assert torch.equal(images.grad, torch.zeros(2, 3))


def test_k_decides_how_many_are_kept():
    sketches, labels = torch.randn(8, 3), torch.zeros(8, dtype=torch.long)
    for k in (1, 3, 10):
        bank = MemoryBank(1, k, 3)
        bank.update(sketches, labels, torch.randn(1, 3), torch.tensor([0]))
        assert int(bank.filled_places[0]) == min(k, 8)


def test_state_travels():
    bank = MemoryBank(2, 2, 3)
    bank.update(torch.randn(3, 3), torch.tensor([0, 0, 1]), torch.randn(1, 3), torch.tensor([0]))
    other = MemoryBank(2, 2, 3)
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.prototypes()[0], bank.prototypes()[0])


def test_half_precision_features_are_accepted():
    bank = MemoryBank(1, 2, 3)
    labels = torch.zeros(2, dtype=torch.long)
    features = torch.randn(2, 3, dtype=torch.bfloat16)
    bank.update(features, labels, features, labels)
    assert torch.isfinite(bank.loss(features, labels))


@pytest.mark.parametrize("name", ["num_classes", "k", "dim"])
def test_sizes_below_one_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        MemoryBank(**{"num_classes": 1, "k": 1, "dim": 1, name: 0})


def test_a_label_outside_the_classes_is_named():
    bank = MemoryBank(2, 1, 3)
    with pytest.raises(ValueError, match=r"image_labels must lie between 0 and 1; found 2 to 2"):
        bank.loss(torch.ones(1, 3), torch.tensor([2]))


def test_a_rule_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="rule must be top_k or release, not best"):
        MemoryBank(2, 2, 3, "best")


def test_autocast_does_not_change_what_is_kept():
    torch.manual_seed(0)
    plain, automatic = (MemoryBank(2, 50, 64) for _ in range(2))
    photos, labels = torch.randn(6, 64), torch.arange(6) % 2
    given = torch.randn(2000, 64), torch.arange(2000) % 2, photos, labels
    plain.update(*given)
    with torch.autocast("cpu", torch.bfloat16):
        automatic.update(*given)
    torch.testing.assert_close(automatic.features, plain.features, rtol=0, atol=0)
