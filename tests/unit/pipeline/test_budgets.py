"""Budgets: a day's worth, by the clock, across restarts."""

import dataclasses

import pytest

from tests.semantics.trees import HandClock
from vnafs.domain.errors import NotFound, RecallBudgetSpent
from vnafs.domain.ids import RepositoryId
from vnafs.domain.repositories import Repository
from vnafs.index import keys
from vnafs.index.engine import prefix_stop
from vnafs.index.engines.memory import MemoryEngine
from vnafs.pipeline.budgets import DAY_SECONDS, Budgets, Used

ONE = Repository(RepositoryId(2), "one", recall_bytes_per_day=1000, recall_requests_per_day=5)
FREE = Repository(RepositoryId(3), "free")


class Rules:
    def __init__(self, *repositories):
        self.known = {repository.id: repository for repository in repositories}

    def __call__(self, number):
        if number not in self.known:
            raise NotFound(what="repository")
        return self.known[number]


@pytest.fixture
def clock():
    found = HandClock()
    found.wall -= found.wall % (DAY_SECONDS * 10**9)  # midnight, UTC
    return found


@pytest.fixture
def store():
    return MemoryEngine()


def rows(store):
    with store.read() as reader:
        prefix = keys.meta("recalled.")
        return list(reader.scan(prefix, prefix_stop(prefix)))


def test_bytes_and_requests_are_each_a_limit(store, clock):
    budgets = Budgets(store, Rules(ONE), clock)
    budgets.charge(ONE.id, 1000)
    with pytest.raises(RecallBudgetSpent, match="Repository one may recall 1000 bytes a day; 1000 are used and 1 more"):
        budgets.charge(ONE.id, 1)
    for _ in range(4):
        budgets.charge(ONE.id, 0)
    with pytest.raises(RecallBudgetSpent, match="5 requests a day; 5 are used"):
        budgets.charge(ONE.id, 0)
    assert budgets.used(ONE.id) == Used(1000, 5)


def test_a_refused_request_is_not_counted(store, clock):
    budgets = Budgets(store, Rules(ONE), clock)
    with pytest.raises(RecallBudgetSpent):
        budgets.charge(ONE.id, 1001)
    assert budgets.used(ONE.id) == Used()
    budgets.charge(ONE.id, 1000)


def test_the_day_ends_at_midnight_utc_and_not_with_a_restart(store, clock):
    Budgets(store, Rules(ONE), clock).charge(ONE.id, 1000)
    clock.sleep(DAY_SECONDS - 1)
    with pytest.raises(RecallBudgetSpent):
        Budgets(store, Rules(ONE), clock).charge(ONE.id, 1)
    clock.sleep(1)
    budgets = Budgets(store, Rules(ONE), clock)
    assert budgets.used(ONE.id) == Used()
    budgets.charge(ONE.id, 1)
    assert budgets.used(ONE.id) == Used(1, 1)


def test_there_is_one_row_for_each_repository_however_many_days_pass(store, clock):
    two = dataclasses.replace(ONE, id=RepositoryId(9), name="two")
    budgets = Budgets(store, Rules(ONE, two), clock)
    for _ in range(50):
        budgets.charge(ONE.id, 1)
        budgets.charge(two.id, 1)
        clock.sleep(DAY_SECONDS)
    assert len(rows(store)) == 2


def test_without_a_budget_or_a_repository_nothing_is_counted_and_all_is_let_through(store, clock):
    budgets = Budgets(store, Rules(FREE), clock)
    for number in (FREE.id, RepositoryId(77)):
        budgets.charge(number, 10**15)
        budgets.check(number, 10**15)
        budgets.give_back(number, 10**15)
        assert budgets.may_run_ahead(number, 10**15)
    assert rows(store) == []


def test_a_budget_that_is_raised_counts_at_once(store, clock):
    rules = Rules(ONE)
    budgets = Budgets(store, rules, clock)
    budgets.charge(ONE.id, 1000)
    rules.known[ONE.id] = dataclasses.replace(ONE, recall_bytes_per_day=1500)
    budgets.charge(ONE.id, 500)
    with pytest.raises(RecallBudgetSpent):
        budgets.check(ONE.id, 1)
