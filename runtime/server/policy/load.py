"""What the steps of late were like, and so what one row more or one more step costs everybody.

Pure arithmetic over measured numbers; times are arguments, in seconds.
"""

from runtime.server.policy.estimators import Mean, Rate
from runtime.server.policy.step_cost import StepCost


class Load:
    """Running means over steps, and what follows from them, worked out once for each step."""

    def __init__(self, max_batch: int, max_step_nodes: int):
        self.cost = StepCost()
        self.max_step_nodes = max_step_nodes
        self.requests = 0  # that are open
        self.steps = 0  # that have begun
        self.step_trees, self.tree_rows, self.step_s = Mean(), Mean(), Mean()
        self.offers = Mean(gain=1 / 64)  # share of plain tokens behind which an offer holds
        self._max_batch = max_batch
        self._tokens = Rate()
        self._ended_s = 0.0
        self._take_stock()

    def opened(self, now_s: float) -> None:
        """One more request is there; time in which there were none counts for no rate."""
        if not self.requests:
            self._ended_s = now_s
        self.requests += 1
        self._share_steps()

    def closed(self) -> None:
        """One request has ended."""
        self.requests -= 1
        self._share_steps()

    def step_ended(
        self, trees: int, rows: int, chunk_rows: int, tokens: int, step_s: float, now_s: float
    ) -> None:
        """A step of `rows` rows in trees and `chunk_rows` in prompts gave so many tokens."""
        self.cost.observe(rows, chunk_rows, step_s)
        elapsed_s, self._ended_s = now_s - self._ended_s, now_s
        self._tokens.observe(tokens, elapsed_s)
        if trees:
            self.step_trees.observe(trees)
            self.tree_rows.observe(rows / trees)
            self.step_s.observe(step_s)
        self._take_stock()

    @property
    def is_oversubscribed(self) -> bool:
        """Whether a step has no place for all requests, however small their trees."""
        return self.requests > self._max_batch

    def step_with_s(self, nodes: int) -> float:
        """A step in which one of the trees, of average number, has so many drafted nodes."""
        return self.cost.step_s(self._other_rows + 1 + nodes)

    def price(self, rows: int) -> float:
        """Tokens that everybody goes without for so many rows more in a step."""
        paid, start = 0.0, 0.0
        for end, row_price in self.prices:
            paid += row_price * max(min(end, rows) - start, 0.0)
            start = end
        return paid

    def _take_stock(self) -> None:
        by_rows = self.max_step_nodes / max(self.tree_rows.value, 1.0)
        self.batch = max(1, min(self._max_batch, int(by_rows)))  # trees that fit in a step
        # Rows that others have in a step, on average.
        self._other_rows = max(self.step_trees.value - 1, 0.0) * self.tree_rows.value
        self._token_s = self.step_with_s(0)
        # drafted nodes of a tree, if all that are in a step have as many
        self.fair_nodes = int(self.max_step_nodes / max(self.step_trees.value, 1.0)) - 1
        # Of more rows than these: how many cost how many tokens each.
        root, per_s = self._other_rows + 1, self._tokens.per_s
        self.prices = [(end - root, row_s * per_s) for end, row_s in self.cost.slopes(root)]
        self._share_steps()

    def _share_steps(self) -> None:
        self.steps_for_all = -(-self.requests // self.batch)  # until each was in one
        # Time of one token of plain decoding beside the others' trees.
        self.plain_s = self.steps_for_all * self._token_s
        # Time of one token if all requests decoded plainly.
        self.all_plain_s = self.steps_for_all * self.cost.step_s(min(self.requests, self.batch))
