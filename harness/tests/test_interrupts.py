"""Ctrl-C may come at any instruction of the main thread: what must not be torn by it holds at each of them."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("isolated")


def interrupted(program: str) -> int:
    """Run a Python program in a process of its own; it prints how often it was interrupted."""
    command = [sys.executable, "-c", f"from torn import interrupted_everywhere\n{program}"]
    here = pathlib.Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_block_that_defers_interrupts_is_whole_or_not_begun() -> None:
    number = interrupted(
        "from natbed import interrupts\n"
        "steps = []\n"
        "def block():\n"
        "    steps.clear()\n"
        "    with interrupts.deferred():\n"
        "        steps.append('begun')\n"
        "        with interrupts.deferred():\n"
        "            steps.append('inner')\n"
        "        steps.append('done')\n"
        "places = 0\n"
        "for places, _ in enumerate(interrupted_everywhere(block), 1):\n"
        "    assert steps in ([], ['begun', 'inner', 'done']), steps\n"
        "print(places)\n"
    )
    assert number > 50


def test_a_node_answers_after_a_call_that_was_interrupted() -> None:
    number = interrupted(
        "import socket\n"
        "from natbed.isolation import NamespaceThread\n"
        "node = NamespaceThread('alice')\n"
        "places = 0\n"
        "for places, _ in enumerate(interrupted_everywhere(lambda: node.call(socket.gethostname)), 1):\n"
        "    assert node.call(socket.gethostname) == 'alice'\n"
        "node.close()\n"
        "print(places)\n"
    )
    assert number > 50


@pytest.mark.parametrize("question", ["poll()", "wait(0.001)"])
def test_a_program_is_ended_after_a_question_that_was_interrupted(question: str) -> None:
    number = interrupted(
        "import contextlib, subprocess\n"
        "from natbed.process import Program\n"
        "running = Program(['cat'], stdin=subprocess.PIPE)\n"
        "def ask():\n"
        "    with contextlib.suppress(subprocess.TimeoutExpired):\n"
        f"        running.{question}\n"
        "places = 0\n"
        "for places, _ in enumerate(interrupted_everywhere(ask), 1):\n"
        "    running.kill()\n"
        "    assert running.wait(10) == -9\n"
        "    running = Program(['cat'], stdin=subprocess.PIPE)\n"
        "running.kill()\n"
        "assert running.wait(10) == -9\n"
        "print(places)\n"
    )
    assert number > 50
