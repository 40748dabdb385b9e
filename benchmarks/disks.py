"""Faults of disks and of two processes at once, for `benchmarks.faults`."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks import faults
from benchmarks.fault_commands import Command, commands

SHARES = (0.002, 0.1, 0.4, 0.6, 0.8, 0.95)
"""Room on the full disk, as a share of what the command writes."""


def scenarios(folder: Path, counts: faults.Counts) -> None:
    """Fill disks, write into read-only folders, damage checkpoints, start two processes at once."""
    by_name = {command.name: command for command in commands(folder)}
    for name in ("segment", "pretrain", "classify", "segment.predict", "classify.predict", "phantom", "store"):
        full_disk(by_name[name], folder, counts)
    damaged_checkpoints(by_name["segment"], counts)
    two_processes(by_name["segment"], counts)
    two_processes(by_name["store"], counts, both=True)


def full_disk(command: Command, folder: Path, counts: faults.Counts) -> None:
    """Run a command on disks that are too small; then make room, or the disk writable, and let it end."""
    faults.undisturbed(command)
    expected = faults.contents(command.out)
    needed = sum(path.stat().st_size for path in command.out.rglob("*") if path.is_file()) // 1024
    log = folder / f"{command.name}.log"
    for share in SHARES:
        what = f"{command.name} on a disk of {share:.1%} of its {needed} kB"
        with_room = max(8, int(needed * share))
        shutil.rmtree(command.out)
        command.out.mkdir(parents=True)
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={with_room}k", "tmpfs", command.out], check=False
        ).returncode:
            print("full disks are not tried: mounting needs root")
            return
        try:
            filler = command.out / ".filler"
            if needed < 64:  # the smallest disk of this kind holds it
                filler.write_bytes(bytes(4096 * (with_room // 4)))
            expect(command, log, what, counts, refused=True)
            faults.check_whole(command.out, counts, what)
            subprocess.run(["mount", "-o", "remount,ro", command.out], check=True)
            expect(command, log, f"{what}, then read-only", counts, refused=True, arguments=command.again)
            subprocess.run(["mount", "-o", f"remount,rw,size={8 * needed + 9999}k", command.out], check=True)
            filler.unlink(missing_ok=True)
            expect(command, log, f"{what}, then with room", counts, arguments=command.again)
            faults.compare(command, expected, counts)
        finally:
            subprocess.run(["umount", command.out], check=True)
        print(what, flush=True)


def expect(
    command: Command,
    log: Path,
    what: str,
    counts: faults.Counts,
    *,
    refused: bool = False,
    arguments: Sequence[str] = (),
) -> None:
    """Run a command and count a problem unless it succeeds, or with `refused` ends with one sentence and code 2."""
    code = faults.finish(faults.start(command, [*command.arguments, *arguments], log))
    text = log.read_text()
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    if "Traceback" in text or "Logging error" in text:
        counts.note("tracebacks", f"{what}: {text[-800:]}")
    elif refused and (code != 2 or len(lines) != 1 or "/" not in lines[0]):
        counts.note("tracebacks", f"{what}: exit code {code}, {text[-400:]}")
    elif not refused and code:
        counts.note("lost", f"{what}: exit code {code}, {text[-400:]}")


def damaged_checkpoints(command: Command, counts: faults.Counts) -> None:
    """Cut checkpoints short and flip bits in them: each is refused."""
    log = command.out.parent / "damaged.log"
    faults.undisturbed(command)
    checkpoint = command.out / "checkpoint.pt"
    content = checkpoint.read_bytes()
    (command.out / "result.json").unlink()
    for share in (0.0, 0.3, 0.7, 0.999):
        place = int(share * len(content))
        flipped = bytearray(content)
        flipped[place] ^= 4
        for kind, damaged in (("cut", content[:place]), ("flipped", bytes(flipped))):
            checkpoint.write_bytes(damaged)
            expect(command, log, f"a checkpoint {kind} at {share:.1%}", counts, refused=True, arguments=command.again)
    print("damaged checkpoints", flush=True)


def two_processes(command: Command, counts: faults.Counts, *, both: bool = False) -> None:
    """Start a command twice at once: one of the two is refused, or with `both` both end; the result is whole."""
    faults.undisturbed(command)
    expected = faults.contents(command.out)
    shutil.rmtree(command.out)
    logs = [command.out.parent / f"{number}.log" for number in (1, 2)]
    processes = [faults.start(command, command.arguments, log) for log in logs]
    codes = [faults.finish(process) for process in processes]
    if sorted(codes) != ([0, 0] if both else [0, 2]):
        counts.note(
            "lost", f"two processes of {command.name} ended with {codes}: {[log.read_text()[-300:] for log in logs]}"
        )
    faults.compare(command, expected, counts)
    print(f"two processes of {command.name}", flush=True)
