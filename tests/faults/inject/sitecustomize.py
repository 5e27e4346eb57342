"""Faults from inside a process under test. Python imports this file at its start where its folder is on PYTHONPATH.

FAULTS_CONTROL names the folder of one launcher, whose parent folder is shared by all launchers of a grid:

    <control>/clock             seconds by which time.time is wrong from now on
    <control>/slow              where to dwell, of save, result, ended, and for how many seconds: "save 0.8"
    <control>/at-<where>-<pid>  written while a process dwells there, so that a kill lands inside
    <shared>/nan-<run id>       a step: its training loss becomes NaN, once; the file becomes nan-<run id>.done
    <shared>/commits.jsonl      a line for every result.json that got its name

`save` is between Orbax's last byte and the name of the checkpoint, `result` between the last byte of result.json and
its name, `ended` between that and the release of the lease. The product knows nothing of this.
"""

import contextlib
import importlib.abc
import json
import os
import sys
import time


class Control:
    """The two folders, read as files by whoever is asked to misbehave."""

    def __init__(self, folder):
        self.folder, self.shared = folder, os.path.dirname(folder)
        self.offset, self.read_at = 0.0, -1.0

    def read(self, name):
        with contextlib.suppress(OSError), open(os.path.join(self.folder, name)) as file:
            return file.read()
        return ""

    def clock_offset(self):
        now = time.monotonic()
        if now - self.read_at > 0.1:
            self.read_at, self.offset = now, float(self.read("clock") or 0)
        return self.offset

    def dwell(self, where):
        wanted, _, seconds = self.read("slow").partition(" ")
        if wanted != where:
            return
        note = os.path.join(self.folder, f"at-{where}-{os.getpid()}")
        with open(note, "w"):
            time.sleep(float(seconds))
        with contextlib.suppress(OSError):
            os.unlink(note)

    def note_commit(self, path):
        line = json.dumps({"run_id": os.path.basename(os.path.dirname(path)), "pid": os.getpid()}) + "\n"
        descriptor = os.open(os.path.join(self.shared, "commits.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def plant(self, run_id, step, losses):
        """The losses of the interval that ended at `step`, with a NaN where one was ordered."""
        order = os.path.join(self.shared, f"nan-{run_id}")
        try:
            with open(order) as file:
                at = int(file.read())
        except (OSError, ValueError):
            return losses
        first = step - len(losses)
        if not first < at <= step:
            return losses
        os.rename(order, f"{order}.done")
        losses = losses.copy()
        losses[at - first - 1] = float("nan")
        return losses


def install(control):
    """Wrap the clock, rename(2) and link(2), and Member.take as soon as it is imported."""
    real_time, real_link = time.time, os.link
    time.time = lambda: real_time() + control.clock_offset()

    def link(source, target, **options):
        is_result = os.path.basename(target) == "result.json"
        if is_result:
            control.dwell("result")
        real_link(source, target, **options)
        if is_result:
            control.note_commit(os.fspath(target))
            control.dwell("ended")

    os.link = link
    for name in ("rename", "replace"):
        setattr(os, name, _dwelling(getattr(os, name), control))
    sys.meta_path.insert(0, _Wrapper("jaxscale.train.member", lambda module: _wrap_take(module.Member, control)))


def _dwelling(move, control):
    def moved(source, target, **options):
        if "orbax-checkpoint-tmp" in os.path.basename(os.fspath(source)):
            control.dwell("save")
        return move(source, target, **options)

    return moved


def _wrap_take(member, control):
    take = member.take

    def planted(self, step, losses, norms):
        take(self, step, control.plant(self.spec.run_id, step, losses), norms)

    member.take = planted


class _Wrapper(importlib.abc.MetaPathFinder):
    """Finds one module as the others would, and edits it when it has been executed."""

    def __init__(self, name, edit):
        self.name, self.edit = name, edit

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)))
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.edit(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FAULTS_CONTROL"):
    install(Control(os.environ["FAULTS_CONTROL"]))
