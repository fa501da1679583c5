import pickle
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from dsn_ray.config import NetworkConfig
from dsn_ray.model import Teacher, build_network, imagenet_weights, load_se_weights
from dsn_ray.model.conditional import ConditionalSqueezeExcite
from dsn_ray.model.network import svd_start

SHARED = Path(__file__).parents[3] / "shared"
PHOTOS = SHARED / "data" / "Sketchy" / "256x256" / "photo" / "tx_000000000000_ready"
LITE0 = NetworkConfig(backbone="efficientnet_lite0")
RANDOM_LITE0 = NetworkConfig(backbone="efficientnet_lite0", weights="none")


def pictures(count: int, px: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, px, px), dtype=torch.uint8, generator=generator)


def svd(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u, s, vh = torch.linalg.svd(weight.detach(), full_matrices=False)
    return u, s, vh


def test_the_classifier_is_taken_apart_once_for_all_processes() -> None:
    weights = imagenet_weights("efficientnet_lite0")
    assert weights is not None
    u, s, vh = weights.classifier_svd
    torch.testing.assert_close(u * s @ vh, weights.classifier_weight, atol=1e-5, rtol=1e-4)
    assert "classifier_svd" in vars(pickle.loads(pickle.dumps(weights)))


@pytest.mark.parametrize("d", [1, 7, 39, 40])
def test_svd_start_is_the_best_approximation_of_its_rank(d):
    weight = torch.randn(40, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    embedding, teacher = svd_start(svd(weight), d)
    assert embedding.shape == (d, 60)
    assert teacher.shape == (40, d)
    truncated = torch.linalg.svdvals(weight)[d:].norm()
    torch.testing.assert_close((weight - teacher @ embedding).norm(), truncated, atol=1e-9, rtol=0)
    torch.testing.assert_close(teacher.T @ teacher, torch.eye(d, dtype=torch.float64))


def test_svd_start_beyond_the_rank_is_refused():
    with pytest.raises(ValueError, match=r"d must be from 1 to 40, .* not 41"):
        svd_start(svd(torch.randn(40, 60)), 41)
    with pytest.raises(ValueError, match=r"d must be from 1 to 1, .* not 2"):
        svd_start(svd(torch.ones(40, 60)), 2)


@torch.no_grad()
def test_network_starts_from_the_imagenet_classifier():
    network = build_network(LITE0.model_copy(update={"dim": 512})).eval()
    weights = imagenet_weights("efficientnet_lite0")
    assert weights is not None
    batch, is_photo = pictures(2), torch.tensor([True, False])
    output = network(batch, is_photo, first_views=2)
    linear = output.trunk @ weights.classifier_weight.T + weights.classifier_bias
    torch.testing.assert_close(output.trunk, network.trunk(batch, is_photo))
    torch.testing.assert_close(output.embedding, network.embed(batch, is_photo))
    error = torch.linalg.svdvals(weights.classifier_weight)[512]
    assert (output.teacher_logits - linear).norm(dim=1).max() <= error * output.trunk.norm()
    assert network.embedding.bias.abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["cse_resnet50", "efficientnet_lite0"])
def test_output_shapes(backbone):
    config = NetworkConfig(backbone=backbone, weights="none", dim=16, projection_dim=24)
    network = build_network(config, num_seen_classes=7)
    output = network(pictures(3), torch.tensor([1.0, 0.0, 1.0]), first_views=1)
    assert {name: tuple(value.shape) for name, value in output._asdict().items()} == {
        "trunk": (3, network.backbone.dim),
        "embedding": (3, 16),
        "projection": (3, 24),
        "class_logits": (1, 7),
        "teacher_logits": (1, 1000),
    }


def test_classifier_outputs_are_those_of_the_first_views():
    network = build_network(RANDOM_LITE0).eval()
    output = network(pictures(3), torch.zeros(3), first_views=2)
    torch.testing.assert_close(output.class_logits, network.classifier(output.embedding[:2]))
    torch.testing.assert_close(output.teacher_logits, network.teacher_head(output.embedding[:2]))


def test_the_same_seed_gives_the_same_network():
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_network(LITE0).state_dict()

    first, second, other = state(3), state(3), state(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@torch.no_grad()
def test_se_weights_start_a_whole_network():
    torch.manual_seed(0)
    published = timm.create_model("legacy_seresnet50")
    network = build_network(NetworkConfig(backbone="cse_resnet50", weights="none"))
    load_se_weights(network, published.state_dict())
    embedding, teacher = svd_start(svd(published.last_linear.weight), 64)
    assert torch.equal(network.embedding.weight, embedding)
    assert torch.equal(network.teacher_head.weight, teacher)
    assert torch.equal(network.teacher_head.bias, published.last_linear.bias)


def test_weights_of_another_backbone_are_refused():
    weights = imagenet_weights("efficientnet_lite0")
    with pytest.raises(ValueError, match="CseResNet50 has no place for blocks"):
        build_network(NetworkConfig(backbone="cse_resnet50"), weights=weights)


def test_teacher_is_frozen_and_keeps_its_digest():
    teacher = Teacher.from_config(LITE0)
    weights = imagenet_weights("efficientnet_lite0")
    assert weights is not None
    assert teacher.digest == weights.digest
    assert not teacher.training
    logits = teacher.logits(pictures(2))
    assert logits.shape == (2, 1000)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_random_teachers_are_alike_and_leave_the_seed_alone():
    torch.manual_seed(0)
    first = Teacher.from_config(RANDOM_LITE0).logits(pictures(1))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(Teacher.from_config(RANDOM_LITE0).logits(pictures(1)), first)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos of ../shared/data are missing")
def test_teacher_recognises_photos():
    wnids = (SHARED / "facts" / "imagenet1k_wnids.txt").read_text().split()
    column = {wnid: number for number, wnid in enumerate(wnids)}
    paths = [path for path in sorted(PHOTOS.glob("*/*.jpg")) if path.name[:9] in column]
    paths = paths[:: len(paths) // 40][:40]
    assert len(paths) == 40
    photos = []
    for path in paths:
        with Image.open(path) as picture:
            photos.append(functional.pil_to_tensor(picture.convert("RGB")))
    batch = functional.center_crop(torch.stack(photos), [224, 224])
    labels = torch.tensor([column[path.name[:9]] for path in paths])
    top1 = (Teacher.from_config(LITE0).logits(batch).argmax(1) == labels).float().mean()
    assert top1 > 0.6


def test_the_gate_knows_a_photo_by_its_one():
    """s = sigmoid(W2 [relu(W1 pool(x)); y]), y = 1 for a photo and 0 for a sketch."""
    torch.manual_seed(0)
    gate = ConditionalSqueezeExcite(4, 2)
    torch.nn.init.normal_(gate.fc2.weight)
    x = torch.randn(2, 4, 3, 3)
    found = gate(x, torch.tensor([False, True]))
    for number, y in enumerate((0.0, 1.0)):
        hidden = torch.relu(gate.fc1.weight @ x[number].mean((1, 2)) + gate.fc1.bias)
        scale = gate.fc2.weight @ torch.cat([hidden, torch.tensor([y])]) + gate.fc2.bias
        expected = x[number] * torch.sigmoid(scale)[:, None, None]
        torch.testing.assert_close(found[number], expected)
