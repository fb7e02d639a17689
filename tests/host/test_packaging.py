"""The project file says what ComfyUI-Manager and the registry read, in the form that ComfyUI itself parses."""

import re

from comfy_config.config_parser import extract_node_configuration

from harness.environment import ROOT


def test_comfyui_reads_our_project_file():
    config = extract_node_configuration(str(ROOT))
    assert config.project.name == "controlled-diffusion"
    assert re.fullmatch(r"\d+\.\d+\.\d+", config.project.version)
    assert config.project.urls.repository.startswith("https://")
    assert config.project.supported_os == ["OS Independent"]
    assert config.project.supported_accelerators == ["GPU :: NVIDIA CUDA"]
    assert config.tool_comfy.display_name == "Controlled Diffusion"
    assert config.project.supported_comfyui_version == ">=0.18.2"


def test_the_registry_id_follows_the_registrys_rules():
    name = extract_node_configuration(str(ROOT)).project.name
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", name)
    assert "comfyui" not in name


def test_the_changelog_has_the_current_version():
    version = extract_node_configuration(str(ROOT)).project.version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
