"""The probe against servers that commit each fault, and against honest ones.

    python probe_faults.py [HONEST_RUNS]

The honest servers are of four languages in turn and draw with other seeds every time, so a
false alarm would be seen; the level of its frequency tests says one in a million.
"""

import sys
import time
from collections import Counter
from pathlib import Path

from results import save

from myna.teachers.endpoint_open import asker_of
from myna.teachers.probe import probe
from myna.teachers.uri import open_teacher

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import catalogue
from fake_model import FakeModel, Fault
from server import serving

HONEST = (
    "zoo:hmm?states=3&symbols=4&horizon=6",
    "zoo:parity?bits=6",
    "zoo:registers?k=2&stop=0.3",
    "zoo:mixture?components=2&states=2&symbols=8&horizon=8",
)


def probed(teacher, faults=(), salt=""):
    horizon = {"horizon": "8"} if teacher.spec.horizon is None else {}
    with serving(FakeModel(teacher, faults, salt=salt)) as url:
        return probe(asker_of("fake", {"base_url": url, **horizon}))


def main(runs: int = 100) -> None:
    hmm, stopping = open_teacher(HONEST[0]), catalogue.function_teacher(horizon=6)
    named = {}
    for fault in Fault:
        profile = probed(stopping if fault is Fault.STOP_HIDDEN else hmm, [fault])
        at_fault = [(f.question, f.answer, f.evidence) for f in profile.faults]
        refused = [f.question for f in profile.findings if f.answer == "refused"]
        named[fault.name] = {
            "what": fault.value,
            "faults": at_fault,
            "refused": refused,
            "token_ids_asked_for": profile.named,
            "access": profile.access.value,
            "requests": profile.requests,
            "tokens": profile.tokens,
        }
        print(fault.name, [f[:2] for f in at_fault], refused, profile.access.value, flush=True)
    alarms, access, requests = [], Counter(), []
    start = time.perf_counter()
    for run in range(runs):
        name = HONEST[run % len(HONEST)]
        profile = probed(open_teacher(name), salt=f" {run}")
        access[profile.access.value] += 1
        requests.append(profile.requests)
        alarms += [{"run": run, "teacher": name, **vars(f)} for f in profile.faults]
    record = {
        "faults": named,
        "faults_named": sum(
            len(row["faults"]) + len(row["refused"]) + (not row["token_ids_asked_for"]) == 1
            for row in named.values()
        ),
        "faults_total": len(named),
        "honest_runs": runs,
        "honest_teachers": HONEST,
        "false_alarms": len(alarms),
        "alarms": [{**alarm, "verdict": alarm["verdict"].value} for alarm in alarms],
        "honest_access": dict(access),
        "honest_requests": {"least": min(requests), "most": max(requests)},
        "honest_seconds_each": (time.perf_counter() - start) / runs,
    }
    print({key: value for key, value in record.items() if key != "faults"})
    save("probe_faults", record)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
