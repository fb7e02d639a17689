"""The harness does what it promises: a set-up that survives everything, clear sentences, and a server that reports errors."""

import ast
import io
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from harness import comfyui, commands, demo, environment
from harness.contact_sheet import draw_contact_sheet
from harness.environment import ROOT, SetupError
from harness.graph import Graph
from harness.server import Server, WorkflowError
from harness.workflow import to_prompt


def command(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
        **options,
    )


@pytest.fixture
def pins(tmp_path, monkeypatch) -> Path:
    """Empty pins in place of the real ones, so that an environment is made within seconds and without a network."""
    for name in ("PINS", "PINS_WITHOUT_DEPENDENCIES"):
        monkeypatch.setattr(environment, name, tmp_path / f"{name}.txt")
        (tmp_path / f"{name}.txt").write_text("# nothing\n")
    return tmp_path / "PINS.txt"


@pytest.fixture
def no_network(monkeypatch):
    """A package index at a closed port of this machine, and no other place to look."""
    for name, value in {
        "INDEX_URL": "http://127.0.0.1:9/simple",
        "EXTRA_INDEX_URL": "",
        "FIND_LINKS": "",
        "CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)


def test_next_set_up_works_after_one_without_network(tmp_path, pins, no_network):
    venv = tmp_path / "venv"
    pins.write_text("einops==0.8.2\n")
    with pytest.raises(SetupError, match=r"This failed: .* pip install [\s\S]*no network \(check the connection"):
        environment.ensure_environment(venv)
    assert environment.read_stamp(venv) == environment.UNFINISHED
    pins.write_text("# nothing\n")
    python = environment.ensure_environment(venv)
    assert subprocess.run([python, "-c", "pass"], check=True).returncode == 0
    assert environment.read_stamp(venv) == environment.expected_stamp()


def test_finished_environment_is_reused_until_pins_change(tmp_path, pins, monkeypatch):
    venv, built = tmp_path / "venv", []
    monkeypatch.setattr(environment, "call", lambda command, show=None: built.append(command))
    for _ in range(2):
        environment.ensure_environment(venv)
    assert len(built) == 3  # venv, pip, pip: once
    pins.write_text("# other pins\n")
    environment.ensure_environment(venv)
    assert len(built) == 6
    assert environment.read_stamp(venv) == environment.expected_stamp()


@pytest.mark.parametrize(("stamp", "is_kept"), [("unfinished", False), ("python 2.7 x86_64 pins 0", False), ("same python", True)])
def test_only_an_environment_of_this_python_is_kept(tmp_path, pins, monkeypatch, stamp, is_kept):
    monkeypatch.setattr(environment, "call", lambda command, show=None: None)
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "a package").touch()
    environment.write_stamp(venv, environment.expected_stamp()[:-1] if stamp == "same python" else stamp)
    environment.ensure_environment(venv)
    assert (venv / "a package").exists() == is_kept


def test_an_environment_of_somebody_else_is_left_alone(tmp_path, pins):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    with pytest.raises(SetupError, match="was not made by this command"):
        environment.ensure_environment(tmp_path / "venv")
    assert (tmp_path / "venv" / "bin").is_dir()


def test_a_full_disk_is_noticed_before_anything_is_made(tmp_path, pins, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**11, 10**11 - 10**8, 10**8))
    with pytest.raises(SetupError, match=r"too little disk for .*: 0\.1 GB are free\. Free some space \(3 GB are needed"):
        environment.ensure_environment(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_a_second_run_waits_for_the_first(tmp_path):
    with environment.lock(tmp_path / "lock"), open(tmp_path / "lock") as other:
        assert not environment.try_lock(other)
    with open(tmp_path / "lock") as other:
        assert environment.try_lock(other)


def archive_of(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("top/vendor/ComfyUI/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def test_only_files_of_comfyui_leave_the_archive(tmp_path):
    inside = ["top/vendor/ComfyUI/main.py", "top/vendor/ComfyUI/comfy/ops.py"]
    outside = ["top/setup.py", "top/vendor/ComfyUI/../../evil.py", "/absolute/top/vendor/ComfyUI/evil.py"]
    archive = archive_of(tmp_path / "archive.tar.gz", inside + outside)
    comfyui.unpack(archive, PurePosixPath("top/vendor/ComfyUI"), tmp_path / "out")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*") if path.name.endswith(".py"))
    assert found == ["comfy/ops.py", "main.py"]
    assert not (tmp_path / "out" / "link").is_symlink()


def test_an_altered_archive_is_refused(tmp_path):
    (tmp_path / "archive").write_bytes(b"something else")
    with pytest.raises(SetupError, match="damaged or altered"):
        comfyui.check(tmp_path / "archive", comfyui.COPIES[comfyui.NEWEST][1])


def test_the_surrounding_comfyui_is_found(tmp_path):
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    pack.mkdir(parents=True)
    assert comfyui.surrounding(pack) is None
    (tmp_path / "ComfyUI" / "main.py").touch()
    (tmp_path / "ComfyUI" / "comfy").mkdir()
    assert comfyui.surrounding(pack) == tmp_path / "ComfyUI"


@pytest.mark.parametrize(
    ("name", "value", "sentence"), [("COMFYUI_PATH", "/nowhere", "no main.py"), ("COMFYUI_VERSION", "9.9", "choose one of")]
)
def test_a_wrong_choice_of_comfyui_is_named(monkeypatch, name, value, sentence):
    monkeypatch.delenv("COMFYUI_VERSION", raising=False)
    monkeypatch.setattr(comfyui, "surrounding", lambda: None)
    monkeypatch.setenv(name, value)
    with pytest.raises(SetupError, match=f"{name} is '{value}'.*{sentence}"):
        comfyui.find_comfyui()


def test_an_old_python_gets_a_sentence(monkeypatch, capsys):
    source = ROOT / "__main__.py"
    ast.parse(source.read_text(), feature_version=(3, 4))
    main = runpy.run_path(str(source))["main"]
    monkeypatch.setattr(sys, "version_info", (3, 8, 0, "final", 0))
    assert main() == 1
    assert "needs Python 3.10 or newer; this is Python 3.8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 0, "python . demo"),
        (["--help"], 0, "python . test"),
        (["dance"], 1, "There is no command 'dance'; choose demo, test or run"),
        (["run", "nowhere.py"], 1, "'run' needs the path of a script, got 'nowhere.py'"),
        (["demo", "--port", "one"], 2, "'one' is not a port"),
        (["demo", "no_such_workflow"], 1, "no example workflow 'no_such_workflow'; choose from"),
    ],
)
def test_the_command_line_explains_itself(arguments, code, words):
    done = command(*arguments)
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_a_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert demo.main(["--serve", "--port", str(port)]) == 1
    assert f"Port {port} cannot be used: Address already in use" in capsys.readouterr().err


def test_the_server_process_ends_with_its_parent():
    alone = [sys.executable, str(ROOT / "tests" / "harness" / "inside.py"), "serve", "--port", "0"]
    assert subprocess.run(alone, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False).returncode == 0


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", "raise SystemExit('no such host')"])
    with pytest.raises(SetupError, match=r"stopped while starting \(exit code 1\):\nno such host"), Server(base=tmp_path):
        pass


DYING_SERVER = """
import asyncio, os, sys
from aiohttp import web

async def answer(request):
    return web.json_response({"prompt_id": "1"})

async def wait_and_die(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    asyncio.get_running_loop().call_later(0.5, os._exit, 3)
    await socket.receive()

app = web.Application()
app.add_routes([web.get("/system_stats", answer), web.post("/prompt", answer), web.get("/ws", wait_and_die)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
"""


def test_a_server_that_ends_while_it_works_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", DYING_SERVER, str(self.port)])
    with Server(base=tmp_path) as server, pytest.raises(SetupError, match="ComfyUI ended while it was working"):
        server.run({})


def image_graph(server, title="Two images") -> Graph:
    graph = Graph(title, server.object_info())
    with graph.group("Images"):
        red = graph.add("EmptyImage", width=32, height=16, color=0xFF0000)
        blue = graph.add("EmptyImage", width=32, height=16, color=0x0000FF)
    with graph.group("Result"):
        graph.add("SaveImage", title="both", images=graph.add("BatchImagesNode", images=[red, blue]), filename_prefix="both")
    graph.note("Two colors.")
    return graph


def test_built_workflow_becomes_the_prompt_and_runs(server):
    prompt = to_prompt(image_graph(server).build(), server.object_info())
    assert {number: node["inputs"] for number, node in prompt.items()} == {
        "1": {"width": 32, "height": 16, "batch_size": 1, "color": 0xFF0000},
        "2": {"width": 32, "height": 16, "batch_size": 1, "color": 0x0000FF},
        "3": {"images.image0": ["1", 0], "images.image1": ["2", 0]},
        "4": {"images": ["3", 0], "filename_prefix": "both"},
    }
    images = server.images(server.run(prompt))
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("class_type", "inputs", "words"),
    [
        ("NoSuchNode", {}, "does not know the node type 'NoSuchNode'"),
        ("EmptyImage", {"depth": 3}, "has no input depth; its inputs are width, height, batch_size, color"),
        ("EmptyImage", {"width": -4}, "width is -4; give a value from 1 to"),
        ("SaveImage", {}, r"images needs the output of a node \(IMAGE\), got None"),
        ("KSamplerSelect", {"sampler_name": "magic"}, "sampler_name is 'magic'; choose one of euler"),
    ],
)
def test_a_mistake_in_a_description_is_named(server, class_type, inputs, words):
    with pytest.raises(ValueError, match=words):
        Graph("wrong", server.object_info()).add(class_type, **inputs)


def test_wrong_link_and_unknown_output_are_named(server):
    graph = Graph("wrong", server.object_info())
    image = graph.add("EmptyImage")
    with pytest.raises(ValueError, match=r"samples takes LATENT, but output 0 of node 1 .* is IMAGE"):
        graph.add("LatentFlip", samples=image)
    with pytest.raises(ValueError, match="no output 'LATENT'; its outputs are IMAGE"):
        image["LATENT"]


def test_failed_prompts_name_the_node_and_the_next_one_runs(server):
    refused = {"7": {"class_type": "EmptyImage", "inputs": {"width": -4, "height": 8, "batch_size": 1, "color": 0}}}
    refused["8"] = {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "x"}}
    with pytest.raises(WorkflowError, match=r"node 7 \(EmptyImage\): Value -4 smaller than min of 1"):
        server.run(refused)
    failing = {"3": {"class_type": "RegexReplace", "inputs": {"string": "a", "regex_pattern": "(", "replace": "b"}}}
    failing["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    with pytest.raises(WorkflowError, match="unterminated subpattern") as caught:
        server.run(failing)
    assert (caught.value.node_id, caught.value.node_type) == ("3", "RegexReplace")
    assert server.images(server.run(to_prompt(image_graph(server).build(), server.object_info())))


def test_prompt_is_given_up_only_when_nothing_moves(server):
    prompt = {"1": {"class_type": "EmptyImage", "inputs": {"width": 4096, "height": 4096, "batch_size": 1, "color": 0}}}
    prompt["2"] = {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 15, "sigma": 5.0}}
    prompt["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
    with pytest.raises(WorkflowError, match="nothing has moved for 0 s"):
        server.execute(prompt, patience=0.05)
    seen = []
    entry, refused = server.execute(prompt, lambda kind, data: seen.append(kind))
    assert refused is None and entry["status"]["status_str"] == "success" and "executing" in seen


def test_an_image_can_be_uploaded_and_loaded(server):
    name = server.upload_image(Image.new("RGB", (8, 8), "lime"), "uploaded.png")
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": name}}}
    prompt["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    (image,) = server.images(server.run(prompt))
    assert image.getpixel((4, 4)) == (0, 255, 0)


def test_the_demo_goes_on_after_a_failure_and_reports_it(server, tmp_path, capsys):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    image_graph(server).save(good)
    bad.write_text(json.dumps({"nodes": [{"id": 1, "type": "NoSuchNode"}], "links": []}))
    results = [demo.run_one(server, path) for path in (bad, good)]
    assert demo.report(results, tmp_path / "out") == 1
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["contact_sheet.png", "good-01-both_1.png", "good-02-both_2.png"]
    assert "NoSuchNode" in capsys.readouterr().out


def test_the_contact_sheet_shows_every_image():
    images = [(f"image {number}", Image.new("RGB", (16, 8), "red")) for number in range(7)]
    sheet = draw_contact_sheet("title", [("seven", images), ("broken", "failed for a reason")])
    reds = sum(count for count, color in sheet.getcolors(2**24) if color == (255, 0, 0))
    assert reds == 7 * 192 * 96


def test_demo_runs_trainings_last_and_estimates_its_time(tmp_path):
    for name in ("a_training", "b", "c_training", "d"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"nodes": [{"type": "AnyTrainer" if "training" in name else "KSampler"}]}))
    recorded = {"a_training": 60.0, "b": 100.0, "c_training": 90.0}
    workflows = commands.choose([], tmp_path)
    assert [path.stem for path in demo.in_order(workflows, recorded)] == ["b", "d", "c_training", "a_training"]
    assert demo.estimate(workflows, recorded, 1) == "4 workflows, the trainings last; this takes about 6 min on 1 quiet core"
