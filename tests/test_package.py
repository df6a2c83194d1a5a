"""What is installed: the contents of wheel and sdist, what they need, and what a missing library says."""

import ast
import importlib
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import ghn_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted((ROOT / "ghn_jax").rglob("*.py"))

DATASET_LIBRARIES = [
    "array_record",
    "grain",
    "h5py",
    "huggingface_hub",
    "matplotlib",
    "PIL",
    "simplejpeg",
    "sklearn",
]
DATASET_LIBRARIES += ["tensorboardX", "tensorflow_datasets", "tyro"]
"""Libraries of the extras that predicting does without; flax itself brings optax and orbax."""

MODULE = {"scikit-learn": "sklearn", "pillow": "PIL", "absl-py": "absl", "orbax-checkpoint": "orbax"}
"""What a distribution is imported as, where that is not its name."""


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=~!; ]", requirement, maxsplit=1)[0]


def modules(requirements: list[str]) -> set[str]:
    names = {name_of(requirement) for requirement in requirements}
    return {MODULE.get(name, name.replace("-", "_")) for name in names}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    pytest.importorskip("setuptools", minversion="77")
    clone = tmp_path_factory.mktemp("clone")
    ignore = shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", "runs", ".*_cache", ".venv")
    shutil.copytree(ROOT, clone, dirs_exist_ok=True, ignore=ignore)
    return build("sdist", clone, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Built from the sdist, which is therefore whole."""
    source = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    return build("wheel", next(source.iterdir()), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory of installed packages: the wheel, and a `datasets` of somebody else."""
    site = tmp_path_factory.mktemp("site")
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text("raise AssertionError('not our datasets')")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def build(kind: str, source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = target.iterdir()
    return built


def run(code: str, site: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True)


def test_wheel_owns_one_name(wheel: pathlib.Path):
    files = zipfile.ZipFile(wheel).namelist()
    tops = {file.partition("/")[0] for file in files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ghn_jax"}
    inside = {file for file in files if file.startswith("ghn_jax/")}
    wanted = {str(path.relative_to(ROOT)) for path in FILES} | {"ghn_jax/py.typed", "ghn_jax/__init__.pyi"}
    weights = {
        str(path.relative_to(ROOT)) for path in (ROOT / "ghn_jax" / "pretrained").glob("*.safetensors")
    }
    assert wanted | weights <= inside
    assert not [file for file in inside - wanted if file.endswith((".py", ".pyc"))]


def test_sdist_holds_the_package_alone(sdist: pathlib.Path):
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= files
    tops = {file.partition("/")[0] for file in files if "/" in file}
    assert tops == {"ghn_jax", "ghn_jax.egg-info"}


def test_metadata(installed: pathlib.Path):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    assert found.version == ghn_jax.__version__
    assert f"version: {found.version}\n" in (ROOT / "CITATION.cff").read_text()
    scripts = {entry.name: entry for entry in found.entry_points if entry.group == "console_scripts"}
    assert {"ghn-train", "ghn-evaluate"} <= set(scripts)
    assert all(callable(entry.load()) for entry in scripts.values())


def test_predicting_needs_no_extra(installed: pathlib.Path):
    """From the wheel, beside somebody else's `datasets`, all optional libraries absent."""
    done = run(
        f"""
import sys
sys.modules |= dict.fromkeys({DATASET_LIBRARIES})  # None: importing it fails
import ghn_jax, flax.linen as nn, jax.numpy as jnp
assert ghn_jax.__file__.startswith({str(installed)!r}), ghn_jax.__file__
for name, home in ghn_jax._HOMES.items():
    try:
        getattr(ghn_jax, name)
    except ImportError as error:
        assert home.startswith("ghn_jax.finetuning") and "ghn-jax[train]" in str(error), error
model = nn.Sequential([nn.Conv(8, (3, 3)), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(10)])
print(ghn_jax.predict_parameters(model, jnp.zeros((1, 8, 8, 3)), strict=True).report)
""",
        installed,
    )
    assert done.returncode == 0, done.stderr
    assert "314 parameters in 4 tensors predicted" in done.stdout


def test_import_is_light():
    done = run("import sys, ghn_jax; print(*sys.modules)")
    assert not {"jax", "flax", *DATASET_LIBRARIES} & set(done.stdout.split())


def test_missing_library_is_one_line():
    done = run("import sys; sys.modules['tyro'] = None; from ghn_jax.__main__ import train; train()")
    assert done.returncode == 2
    assert done.stderr == (
        "error: `tyro` is not installed: pip install 'ghn-jax[train]', or, in a clone, '.[train]'\n"
    )


def test_overview():
    done = subprocess.run([sys.executable, "-m", "ghn_jax"], cwd=ROOT, capture_output=True, text=True)
    for part in (f"ghn_jax {ghn_jax.__version__}", *PROJECT["scripts"], "ghn2-digits", "1 x cpu"):
        assert part in done.stdout


def test_requirements_are_those_of_the_package():
    extras = PROJECT["optional-dependencies"]

    def lines(file: str) -> list[str]:
        return [line for line in (ROOT / file).read_text().split("\n") if line and not line.startswith("-r")]

    runtime = {*PROJECT["dependencies"], *extras["train"], *extras["hub"], *extras["plots"]}
    assert set(lines("requirements.txt")) == runtime
    tools = {
        requirement for requirement in (*extras["dev"], *extras["docs"]) if name_of(requirement) != "ghn-jax"
    }
    assert set(lines("requirements-dev.txt")) == tools


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_libraries_are_imported_under_their_extra(path: pathlib.Path):
    needed = (
        modules(PROJECT["dependencies"]) | sys.stdlib_module_names | {"compression"}
    )  # from Python 3.14 on
    extras = {name: modules(requirements) for name, requirements in PROJECT["optional-dependencies"].items()}
    for module, extra in imported(ast.parse(path.read_text())):
        allowed = extras[extra] if extra else needed
        assert module in allowed | {"ghn_jax"}, f"{module} needs `with extra(...)`"


def imported(tree: ast.AST, extra: str | None = None) -> list[tuple[str, str | None]]:
    """Top-level names of the imported modules, each with the extra that it is imported under."""
    if isinstance(tree, ast.Import):
        return [(alias.name.partition(".")[0], extra) for alias in tree.names]
    if isinstance(tree, ast.ImportFrom):
        return [((tree.module or "").partition(".")[0], extra)]
    if isinstance(tree, ast.With):
        for item in tree.items:
            match item.context_expr:
                case ast.Call(func=ast.Name(id="extra"), args=[ast.Constant(value=str(extra))]):
                    break
    return [found for child in ast.iter_child_nodes(tree) for found in imported(child, extra)]


def test_public_names_are_no_rooms():
    """A module, once imported, would hide a name of the package that is called the same."""
    rooms = {path.relative_to(ROOT / "ghn_jax").parts[0].removesuffix(".py") for path in FILES}
    assert rooms & set(ghn_jax.__all__) == {"finetune"}
    with pytest.raises(ImportError, match="is a function"):  # a command, which cannot be imported
        importlib.import_module("ghn_jax.finetune")
    assert callable(ghn_jax.finetune)
