"""Credits that come when nothing is left to send, by the rate that a flow starts with."""

from bench.expresspass.completion import LOAD, by_size, quantile
from bench.expresspass.engine import Run, simulate
from bench.expresspass.network import FatTree, Network
from bench.expresspass.table import Claim, Plot, Table, nothing_lost
from bench.expresspass.workloads import WORKLOADS, on_fat_tree

STARTS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
FLOWS = 4000


def waste() -> Table:
    """Web server and cache follower on the fat-tree, by ExpressPass's start rate."""
    rows, lost = [], 0
    lines: dict[str, list[tuple[float, float]]] = {}
    for workload in WORKLOADS[:2]:
        lines[workload.name] = []
        for start in STARTS:
            tree = FatTree(Network("expresspass"))
            flows = on_fat_tree(tree, workload, FLOWS, LOAD, seed=1)
            run = Run(tree.network, flows, start_rate=start, start_weight=start)
            result = simulate(run)
            wasted = sum(flow.wasted_credits for flow in result.flows)
            reached = sum(flow.credits for flow in result.flows) - result.counts.dropped_credits
            times = by_size(flows, result)
            share = wasted / reached
            rows.append(
                (
                    *(workload.name, f"1/{round(1 / start)}", f"{wasted / FLOWS:.1f}"),
                    *(f"{share:.3f}", f"{quantile(times['S'], 0.99):.0f}"),
                    f"{quantile(times['M'], 0.99):.0f}",
                )
            )
            lines[workload.name].append((start, share))
            lost += result.counts.dropped
    shares = [[share for _, share in line] for line in lines.values()]
    falls = all(of_one == sorted(of_one, reverse=True) for of_one in shares)
    return Table(
        "waste",
        f"Credits wasted by the start rate (and weight), {FLOWS} flows on the fat-tree: a flow; of"
        " those that reached a sender; p99 completion in us",
        ("workload", "start", "a flow", "share", "S p99", "M p99"),
        rows,
        [
            nothing_lost(lost),
            Claim("a lower start rate wastes fewer credits", "see the table", falls),
        ],
        {"waste": Plot("start rate", "share of credits wasted", lines, log_y=False)},
        lost,
    )
