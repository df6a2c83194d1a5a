"""Runs benchmarks, and keeps what they print in docs/measured, with the day, the machine and the versions.

    python -m benchmarks.report executor meta_step -- --public CHECKOUT --torch_python PYTHON

What follows -- is given to each of the benchmarks. Every one leaves docs/measured/NAME.json; docs/measured/README.md is
written anew from all of these files.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any

from ghn_jax.runtime import commands
from ghn_jax.runtime.errors import unknown_name

_DIRECTORY = pathlib.Path(__file__).parents[1] / "docs" / "measured"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def main(arguments: list[str]) -> None:
    """Runs the benchmarks named before `--` with the options after it; ends with the exit code of one that fails."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names, options = arguments[:cut], arguments[cut + 1 :]
    for name in names:
        if not pathlib.Path(__file__).with_name(f"{name}.py").exists():
            known = sorted(path.stem for path in pathlib.Path(__file__).parent.glob("[a-z]*.py"))
            raise unknown_name("benchmark", name, known)
    for name in names:
        command = ["-m", f"benchmarks.{name}", *options]
        print(f"python {' '.join(command)}", flush=True)
        started, load = datetime.datetime.now(datetime.UTC), os.getloadavg()[0]
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode:
            sys.exit(done.returncode)
        if {"-h", "--help"} & set(options):
            continue  # nothing was measured
        record = {
            "benchmark": name,
            "command": f"python -m benchmarks.{name} {without_paths(options)}".strip(),
            "date": started.date().isoformat(),
            "machine": machine() | {"load before": round(load, 1)},
            "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
            **parse(done.stdout),
        }
        _DIRECTORY.mkdir(parents=True, exist_ok=True)
        (_DIRECTORY / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    records = [json.loads(path.read_text()) for path in sorted(_DIRECTORY.glob("*.json"))]
    (_DIRECTORY / "README.md").write_text(render(records))


def machine() -> dict[str, Any]:
    """The processor, its cores that are ours, and the accelerator that jax finds."""
    import jax

    info = pathlib.Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }


def parse(output: str) -> dict[str, Any]:
    """Markdown tables, as lists of rows by column, and the other lines."""
    tables, lines, table = [], [], []
    for line in [*output.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("| ").split("|")])
            continue
        if table:
            header, _, *rows = table
            tables.append({"columns": header, "rows": rows})
            table = []
        if line.strip():
            lines.append(line.strip())
    return {"tables": tables, "lines": lines}


def render(records: list[dict[str, Any]]) -> str:
    """All records as one page."""
    parts = [
        "# Measured\n",
        "Written by `python -m benchmarks.report`, which keeps the same figures as JSON.\n",
    ]
    for record in records:
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        hardware = record["machine"]
        parts += [f"## {record['benchmark']}\n", f"`{record['command']}`\n"]
        parts += [
            f"{record['date']}; {hardware['cores']} cores of {hardware['processor']}, device {hardware['device']}, "
            f"load {hardware['load before']} before; {versions}.\n"
        ]
        for table in record["tables"]:
            rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
            parts += ["\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"]
        parts += ["".join(f"- {line}\n" for line in record["lines"])] if record["lines"] else []
    return "\n".join(parts)


def without_paths(options: list[str]) -> str:
    """The options, with directories of this machine left out."""
    return " ".join(re.sub(r"[\w.~-]*/\S+", "PATH", option) for option in options)


if __name__ == "__main__":
    with commands.errors_as_lines():
        main(sys.argv[1:])
