"""The project file says what ComfyUI-Manager and the registry read, in the form that ComfyUI itself parses."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from comfy_config.config_parser import extract_node_configuration
from PIL import Image

import icon
from harness.environment import ROOT


def test_comfyui_reads_our_project_file():
    config = extract_node_configuration(str(ROOT))
    assert config.project.name == "controlled-diffusion"
    assert re.fullmatch(r"\d+\.\d+\.\d+", config.project.version)
    assert config.project.urls.repository.startswith("https://")
    assert config.project.supported_os == ["OS Independent"]
    assert config.project.supported_accelerators == []  # whatever the host runs on
    assert config.tool_comfy.display_name == "Controlled Diffusion"
    assert config.project.supported_comfyui_version == ">=0.18.2"


@pytest.mark.parametrize(("key", "shape", "largest"), [("icon", (1, 1), 400), ("banner", (21, 9), 2100)])
def test_icon_and_banner_have_the_registrys_shape(key, shape, largest):
    """Square and at most 400 pixels; 21:9. They are files of this repository, as ``python . run tests/icon.py`` draws them."""
    home = extract_node_configuration(str(ROOT)).project.urls.repository.replace("github.com", "raw.githubusercontent.com")
    (url,) = re.findall(rf'^{key.capitalize()} = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    place = ROOT / url.removeprefix(f"{home}/main/")
    assert place.stat().st_size < 128 * 1024
    with Image.open(place) as image:
        assert image.width * shape[1] == image.height * shape[0] and image.width <= largest
        assert image.size == icon.SIZES[key]


LEFT_OUT = [line.rstrip("/") for line in (ROOT / ".comfyignore").read_text("utf-8").splitlines()]


def packed_files() -> list[Path]:
    """What the registry packs: what git holds, without what .comfyignore names."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [path for path in map(Path, files) if not any(path.is_relative_to(name) for name in LEFT_OUT)]


def test_the_archive_holds_what_users_need_and_no_more():
    packed = {path.parts[0] for path in packed_files()}
    assert packed >= {"__init__.py", "pyproject.toml", "README.md", "LICENSE", "nodes", "locales", "example_workflows"}
    assert not packed & {"tests", ".github", ".ci", "__main__.py"}
    assert not [name for name in LEFT_OUT if not (ROOT / name).exists()]


def test_the_archive_holds_the_weights_of_its_workflows_in_40_mb():
    packed = packed_files()
    assert sum((ROOT / path).stat().st_size for path in packed if path.suffix == ".safetensors") <= 40e6
    missing = {Path(name).name for name in LEFT_OUT if name.endswith(".safetensors")} - {path.name for path in packed}
    workflows = [path for path in packed if path.parts[0] == "example_workflows" and path.suffix == ".json"]
    assert missing and workflows
    assert not [(str(path), name) for path in workflows for name in missing if name in (ROOT / path).read_text("utf-8")]


def test_the_registry_id_follows_the_registrys_rules():
    name = extract_node_configuration(str(ROOT)).project.name
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", name)
    assert "comfyui" not in name


def test_the_changelog_has_the_current_version():
    version = extract_node_configuration(str(ROOT)).project.version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("before", "pushed", "published"),
    [
        (None, [("0.1.0", "0.1.0 (unreleased)")], False),  # the very first push
        (None, [("0.1.0", "0.1.0")], True),
        (("0.1.0", "0.1.0 (unreleased)"), [("0.1.0", "0.1.0")], True),
        (("0.1.0", "0.1.0"), [("0.1.0", "0.1.0")], False),
        (("0.1.0", "0.1.0"), [("0.2.0", "0.2.0"), ("0.2.0", "0.2.0")], True),  # another commit after the one with the version
        (("0.1.0", "0.1.0"), [("0.2.0", "0.2.0 (unreleased)")], False),
    ],
)
def test_a_push_publishes_just_when_it_releases_a_version(before, pushed, published, tmp_path):
    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *name, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    start = "0" * 40
    for number, (version, heading) in enumerate([before, *pushed] if before else pushed):
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
        (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n\n{number}\n")
        git("add", "-A")
        git("commit", "-qm", "more")
        start = git("rev-parse", "HEAD") if before and not number else start
    workflow = yaml.safe_load((ROOT / ".github/workflows/publish.yml").read_text())
    script, told = workflow["jobs"]["version"]["steps"][-1]["run"], tmp_path / "told"
    subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, check=True, env={**os.environ, "BEFORE": start, "GITHUB_OUTPUT": str(told)}
    )
    assert told.read_text() == f"changed={str(published).lower()}\n"
