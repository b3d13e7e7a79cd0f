"""What tools/bench found: markdown, JSON, goals."""

import os
import pathlib
import platform
import re
import statistics


class Report:
    def __init__(self, bench):
        self.bench = bench
        self.cells = {cell: {path: {key: median([result[key] for result in results]) for key in results[0]}
                             for path, results in paths.items()} for cell, paths in bench.cells.items()}
        self.goals = self.judge()

    def data(self):
        return {"machine": machine(), "versions": self.bench.versions, "rounds": self.bench.arguments.rounds,
                "seconds": self.bench.arguments.seconds, "scale": self.bench.arguments.scale, "median": self.cells,
                "rounds_by_cell": self.bench.cells, "failures": self.bench.failures,
                "goals": [dict(zip(("goal", "limit", "measured", "reached"), goal)) for goal in self.goals]}

    def ratio(self, cell, path, key, base):
        mine, theirs = (self.cells.get(cell, {}).get(p, {}).get(key) for p in (path, base))
        return mine / theirs if mine is not None and theirs else None

    def judge(self):
        goals = []
        for cell in self.cells:
            clients = cell.rpartition("/")[2]
            if clients in ("8", "64"):
                limit = 1.10 if clients == "8" else 1.0
                goals.append((f"{cell}: CPU / pgbouncer's", f"<= {limit:.2f}", self.ratio(cell, "crossfade", "cpu_seconds_per_10k", "pgbouncer"), limit))
            if clients == "64":
                goals.append((f"{cell}: throughput / pgbouncer's", ">= 1.00", self.ratio(cell, "crossfade", "tps", "pgbouncer"), -1.0))
        for cell in ("connect/trust", "connect/scram"):
            goals.append((f"{cell}: throughput / pgbouncer's", ">= 1.00", self.ratio(cell, "crossfade", "tps", "pgbouncer"), -1.0))
        for cell in ("stream/copy", "stream/query", "stream/small"):
            goals.append((f"{cell}: rate / direct", ">= 0.55", self.ratio(cell, "crossfade", "mb_per_second", "direct"), -0.55))
        for cell in ("stream/query", "stream/small", "stream/stalled"):
            goals.append((f"{cell}: growth of memory, KiB", "<= 8192", self.cells.get(cell, {}).get("crossfade", {}).get("peak_growth_kib"), 8192))
        idle = self.cells.get("idle", {}).get("crossfade", {}).get("bytes_per_client")
        goals.append(("idle: KiB per client", "<= 8.00", idle / 1024 if idle is not None else None, 8.0))
        # A negative limit is a least value.
        return [(goal, text, value, value <= limit if limit > 0 else value >= -limit)
                for goal, text, value, limit in goals if value is not None]

    def markdown(self):
        arguments, versions = self.bench.arguments, self.bench.versions
        lines = [f"Machine: {machine()}. " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
                 f"{arguments.rounds} interleaved rounds of {arguments.seconds:g} s, medians. pgbench scale {arguments.scale}, everything on one "
                 f"machine over loopback TCP, trust (`connect/scram`: SCRAM-SHA-256), fsync off. Transaction pooling with {self.bench.pool} server connections; `crossfade-session` is "
                 "session pooling. pgbouncer 1.18 knows no prepared statements in transaction pooling: its `prepared` cells run in session "
                 "pooling. CPU: user and system seconds of the proxy's process per 10,000 transactions.", ""]
        benched = [cell for cell in self.cells if "tps" in next(iter(self.cells[cell].values()))]
        lines += ["| workload/protocol/clients | path | tps | mean ms | p99 ms | CPU s | tps / pgbouncer | tps / direct | CPU / pgbouncer |",
                  "|---|---|--:|--:|--:|--:|--:|--:|--:|"] if benched else []
        for cell in benched:
            for path in arguments.paths:
                if result := self.cells[cell].get(path):
                    ratios = [self.ratio(cell, path, key, base) for key, base in
                              (("tps", "pgbouncer"), ("tps", "direct"), ("cpu_seconds_per_10k", "pgbouncer"))]
                    lines.append(f"| {cell} | {path} | {result['tps']:.0f} | {show(result['average_ms'], 3)} | {show(result['p99_ms'])} | "
                                 f"{show(result['cpu_seconds_per_10k'], 3)} | " + " | ".join(map(show, ratios)) + " |")
        others = [cell for cell in self.cells if cell not in benched]
        lines += ["", "| measurement | path | value | / direct |", "|---|---|--:|--:|"] if others else []
        units = {"mb_per_second": "MB/s", "peak_growth_kib": "KiB more memory at the peak", "bytes_per_client": "bytes per idle client",
                 "logins_per_second": "logins/s, one after the other"}
        for cell in others:
            for path in arguments.paths:
                for key, value in self.cells[cell].get(path, {}).items():
                    if key == "peak_growth_kib" and path == "direct":
                        continue
                    rate = self.ratio(cell, path, key, "direct") if key == "mb_per_second" else None
                    lines.append(f"| {cell} | {path} | {value:.0f} {units[key]} | {show(rate)} |")
        if self.goals:
            lines += ["", "| goal | limit | measured | |", "|---|--:|--:|---|"]
            lines += [f"| {goal} | {text} | {value:.2f} | {'reached' if held else 'missed'} |" for goal, text, value, held in self.goals]
        lines += ["", *(f"FAILED {failure}" for failure in self.bench.failures)]
        return "\n".join(lines).rstrip()


def machine():
    names = re.findall(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}, Linux {platform.release().split('-')[0]}"


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def show(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"
