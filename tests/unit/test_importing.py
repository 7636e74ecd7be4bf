"""csr-import: the authors' layout, plain backbones, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from csr_deploy.checkpoint import load_checkpoint, save_checkpoint
from csr_deploy.cli.import_ import main
from csr_deploy.errors import CheckpointError, CsrError
from csr_deploy.importing import Imported, ImportOptions, import_network
from csr_deploy.models import architecture, count_parameters
from csr_deploy.models.imagenet_mobilenet import ImageNetMobileNetV2
from csr_deploy.models.weights import timm_modules
from csr_deploy.unroll.evaluate import run_graph
from csr_deploy.unroll.lowering import unroll
from tests.authors import AuthorsMobileNetV2
from tests.networks import settle

Run = Callable[..., tuple[int, str, str]]


def authors(cifar: bool, blocks: range, size: int, **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = AuthorsMobileNetV2(cifar, blocks, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("alpha", "beta")):
                parameter.add_(torch.rand(()), alpha=0.3)
    return settle(model, (1, 3, size, size))


def saved(state: object, folder: Path) -> Path:
    path = folder / "state.pt"
    torch.save(state, path)
    return path


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(x)
    return out


def check_same(model: nn.Module, imported: Imported, size: int) -> None:
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected, found = outputs(model, x), outputs(imported.checkpoint.build(), x)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_the_imagenet_form_reproduces_its_outputs(tmp_path: Path) -> None:
    model = authors(False, range(5, 17), 64, classes=1000)
    imported = import_network(saved(model.state_dict(), tmp_path), ImportOptions())
    plan = imported.checkpoint.architecture
    assert count_parameters(imported.checkpoint.build()) == 2_469_080
    assert (plan.backbone, plan.cell, plan.channel_fill) == ("mobilenetv2-imagenet", "incremental", "wrap")
    assert len(plan.csr_layers) == 24
    assert {n.rpartition(".")[2]: t for n, t in plan.csr_layers.items()} == {"0": 3, "2": 4}
    assert imported.checkpoint.preprocessing.height == 224
    check_same(model, imported, 64)


def test_the_cifar_form_reproduces_its_outputs(tmp_path: Path) -> None:
    model = authors(True, range(10, 17), 32)
    path = saved({f"module.{k}": v for k, v in model.state_dict().items()}, tmp_path)
    imported = import_network(path, ImportOptions())
    plan = imported.checkpoint.architecture
    assert plan.backbone == "mobilenetv2"
    kinds = {n.rpartition(".")[2]: t for n, t in plan.csr_layers.items()}
    assert (len(plan.csr_layers), kinds) == (14, {"expand": 3, "project": 4})
    assert imported.checkpoint.labels[0] == "airplane"
    check_same(model, imported, 32)
    save_checkpoint(tmp_path / "model.pt", imported.checkpoint)
    again = load_checkpoint(tmp_path / "model.pt")
    assert again.architecture == plan
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    graph = unroll(again.build(), (1, 3, 32, 32))
    expected = outputs(model.double(), x)
    assert float((run_graph(graph, x) - expected).abs().max() / expected.abs().max()) <= 1e-10


def test_depthwise_recurrences_are_recognised(tmp_path: Path) -> None:
    model = authors(True, range(14, 17), 32, steps=(2, 3, 5))
    state = model.state_dict()
    for key in [k for k in state if k.endswith((".alpha", ".beta"))]:
        state[key] = state[key].reshape(1, 1, 1, 1)
    imported = import_network(saved({"epoch": 3, "state_dict": state}, tmp_path), ImportOptions())
    plan = imported.checkpoint.architecture
    assert set(plan.layer_cells.values()) == {"incremental-depthwise"}
    assert {n.rpartition(".")[2]: t for n, t in plan.csr_layers.items()} == {
        "expand": 2,
        "depthwise": 3,
        "project": 5,
    }
    check_same(model, imported, 32)
    save_checkpoint(tmp_path / "model.pt", imported.checkpoint)
    assert load_checkpoint(tmp_path / "model.pt").architecture == plan


def test_a_plain_backbone_with_torchvisions_names(tmp_path: Path) -> None:
    model = settle(architecture("mobilenetv2-imagenet", 7).build(), (1, 3, 64, 64))
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    options = ImportOptions(classes=tuple("abcdefg"), image_size=(64, 96), mean=(0.5,) * 3, std=(0.2,) * 3)
    imported = import_network(saved(state, tmp_path), options)
    assert imported.assumptions == ()
    assert not imported.checkpoint.architecture.csr_layers
    assert (imported.checkpoint.labels, imported.checkpoint.preprocessing.width) == (tuple("abcdefg"), 96)
    check_same(model, imported, 64)


def test_a_plain_backbone_with_timms_names(tmp_path: Path) -> None:
    model = settle(architecture("mobilenetv2-imagenet", 7).build(), (1, 3, 64, 64))
    assert isinstance(model, ImageNetMobileNetV2)
    names = timm_modules(model)
    state = {}
    for key, value in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        state[f"{names[module]}.{leaf}"] = value
    imported = import_network(saved(state, tmp_path), ImportOptions())
    assert imported.checkpoint.architecture.name == "mobilenetv2-imagenet"
    check_same(model, imported, 64)


def test_a_backbone_can_be_named(tmp_path: Path) -> None:
    model = settle(architecture("vgg16", 10).build(), (1, 3, 32, 32))
    renamed = {f"net.{k}": v for k, v in model.state_dict().items()}
    imported = import_network(saved(renamed, tmp_path), ImportOptions(network="vgg16"))
    check_same(model, imported, 32)


def state_of(**changes: Tensor | None) -> dict[str, Tensor]:
    state = dict(AuthorsMobileNetV2(True, range(15, 17)).state_dict())
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


LAST = "features.17.conv.6"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra.thing": torch.ones(3)}, "extra.thing belongs to no known layer"),
        ({f"{LAST}.gamma": torch.ones(1)}, f"match: {LAST}.gamma is not known"),
        ({f"{LAST}.alpha": None}, f"{LAST}.alpha is missing"),
        ({f"{LAST}.alpha": torch.ones(2)}, f"{LAST}.alpha is no scalar"),
        ({f"{LAST}.param_u": torch.ones(80, 240, 1, 3)}, f"{LAST}.param_u .* for no T of blocks.16.project"),
        ({"features.0.1.bias": torch.ones(31)}, r"features.0.1.bias is \[31\] instead of \[32\]"),
        ({"features.2.conv.0.weight": None}, "52 convolutions"),
        ({"classifier.1.bias": None}, "classifier.1.bias is missing"),
    ],
)
def test_keys_that_do_not_match_are_listed(
    changes: dict[str, Tensor | None], says: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=says):
        import_network(saved(state_of(**changes), tmp_path), ImportOptions())


class Code:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("raise SystemExit('was run')",)


def test_a_whole_model_is_refused_and_not_run(tmp_path: Path) -> None:
    for content in (AuthorsMobileNetV2(True, range(0)), {"state_dict": Code()}):
        with pytest.raises(CheckpointError, match="nothing in it was run") as caught:
            import_network(saved(content, tmp_path), ImportOptions())
        assert caught.value.fix is not None
        code = [line.strip() for line in caught.value.fix.splitlines() if line.startswith("  ")]
        assert len(code) == 3
        compile("\n".join(code), "fix", "exec")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no model")
    checkpoint = import_network(saved(state_of(), tmp_path), ImportOptions()).checkpoint
    save_checkpoint(tmp_path / "ours.pt", checkpoint)
    torch.save({"epoch": 3, "lr": [0.1]}, tmp_path / "record.pt")
    content = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    for name, says in {
        "nothing.pt": "no file",
        "text.pt": "zip format",
        "ours.pt": "checkpoint of csr-deploy already",
        "record.pt": "no state_dict, but epoch, lr",
        "cut.pt": "truncated or damaged",
    }.items():
        with pytest.raises(CheckpointError, match=says) as caught:
            import_network(tmp_path / name, ImportOptions())
        assert caught.value.where == str(tmp_path / name)
        assert caught.value.fix


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ImportOptions(network="mobilenet-v2"), "unknown network"),
        (ImportOptions(network="vgg16"), "13 convolutions"),
        (ImportOptions(classes=("a", "b")), "2 class names"),
        (ImportOptions(mean=(0.5, 0.5, 0.5)), "belong together"),
        (ImportOptions(mean=(0.5,), std=(0.5,)), "takes 3 channels"),
        (ImportOptions(mean=(0.5,) * 3, std=(0.0,) * 3), "a std is 0"),
    ],
)
def test_options_that_do_not_fit(options: ImportOptions, says: str, tmp_path: Path) -> None:
    with pytest.raises(CsrError, match=says):
        import_network(saved(state_of(), tmp_path), options)


@pytest.fixture
def csr_import(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process; gives exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["csr-import", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    monkeypatch.setenv("COLUMNS", "200")
    return run


def test_the_command(csr_import: Run, tmp_path: Path) -> None:
    file, out = saved(state_of(), tmp_path), tmp_path / "model.pt"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(10)))
    code, stdout, stderr = csr_import(file, "-o", out, "--classes", names, "--image-size", "48x40")
    assert code == 0, stderr
    assert "2 incremental with T = 3, 2 incremental with T = 4" in stdout
    assert "usual mean and std of CIFAR-10" in stderr
    checkpoint = load_checkpoint(out)
    assert checkpoint.labels[9] == "class 9"
    assert (checkpoint.preprocessing.height, checkpoint.preprocessing.width) == (48, 40)
    before = out.read_bytes()
    code, _, stderr = csr_import(file, "-o", out)
    assert code == 1
    assert "exists already" in stderr
    assert out.read_bytes() == before
    assert csr_import(file, "-o", out, "--force", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")[0] == 0
    assert csr_import(file, "-o", out, "--mean", "a,b")[0] == 2
    assert csr_import(file, "-o", out, "--image-size", "0")[0] == 2
    code, _, stderr = csr_import(file, "-o", tmp_path / "b.pt", "--classes", tmp_path / "none.txt")
    assert code == 1
    assert "cannot be read" in stderr
