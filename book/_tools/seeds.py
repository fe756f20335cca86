"""Run a page with many seeds and record the least margin of each claim: `make seeds CHAPTER=03`."""

from __future__ import annotations

import sys
from functools import partial

import execute
from book import BookError, load
from build import write_json
from indices import SEEDS


def collect(runs: list[execute.Run], seeds: list[int]) -> dict[str, dict]:
    """Claim id -> in how many runs it was checked and held, its least margin, and the seed of that run."""
    found: dict[str, dict] = {}
    for seed, run in zip(seeds, runs, strict=True):
        for record in execute.claims(run.notebook):
            entry = found.setdefault(record["id"], {"runs": 0, "held": 0, "least_margin": 1.0, "seed": seed})
            entry["runs"] += 1
            entry["held"] += record["ok"]
            if record["margin"] < entry["least_margin"]:
                entry |= {"least_margin": record["margin"], "seed": seed}
    return found


def main(arguments: list[str]) -> int:
    try:
        page = load().page(arguments[0])
    except BookError as error:
        print(error, file=sys.stderr)
        return 1
    seeds = list(range(int(arguments[1])))
    by_seed: dict[int, execute.Run] = {}

    def job(seed: int) -> execute.Run:
        by_seed[seed] = execute.run(page, seed=seed, allow_errors=True)
        held = all(record["ok"] for record in execute.claims(by_seed[seed].notebook))
        print(
            f"  seed {seed:2d}: {by_seed[seed].seconds:.1f} s{'' if held else '  A CLAIM FAILED'}", flush=True
        )
        return by_seed[seed]

    print(f"Running {page.name} with {len(seeds)} seeds ...", flush=True)
    list(execute.run_all([partial(job, seed) for seed in seeds]))
    runs = [by_seed[seed] for seed in seeds]
    claims = collect(runs, seeds)
    errors = {str(seed): run.error for seed, run in by_seed.items() if run.error}
    SEEDS.mkdir(parents=True, exist_ok=True)
    write_json(
        SEEDS / f"{page.stem}.json", {"page": page.name, "seeds": seeds, "claims": claims, "errors": errors}
    )
    failed = [name for name, entry in claims.items() if entry["held"] < len(seeds)]
    for name, entry in claims.items():
        print(f"{entry['least_margin']:8.1%}  seed {entry['seed']:2d}  {entry['held']}/{len(seeds)}  {name}")
    for name in failed:
        print(f"FAILED for some seed: {name}", file=sys.stderr)
    return bool(failed or errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
