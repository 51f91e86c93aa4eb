"""Who waits for what, since when: what is told, how often, and when it is over."""

from __future__ import annotations

import time

from introspect_ray.records import Wait
from introspect_ray.runs.waiting import bundle, news

T = time.mktime((2026, 11, 28, 5, 20, 11, 0, 0, -1))


def test_waiting_is_told_at_once_and_every_ten_minutes_until_it_is_over():
    engines, told = Wait("2 of 4 rollout actors", bundle({"CPU": 1.0, "GPU": 0.5}), T), {}
    line = "waiting  2 of 4 rollout actors need 1 CPU and 0.5 GPU each, since 05:20:11"
    assert news(told, [engines], T + 20) == [line]
    assert news(told, [engines], T + 30) == news(told, [engines], T + 619) == []
    assert news(told, [engines], T + 620) == [line]
    assert news(told, [], T + 3611) == ["waited   for 2 of 4 rollout actors: it is over at 06:20:22"]
    assert told == {} and news(told, [], T + 3612) == []


def test_two_who_wait_are_told_apart():
    engines, workers = Wait("1 of 1 rollout actors", "1 GPU each", T), Wait("4 training worker(s)", "1 GPU each", T + 5)
    told: dict[str, float] = {}
    news(told, [engines], T + 20)
    assert [line[:10] for line in news(told, [engines, workers], T + 30)] == ["waiting  4"]
    assert [line[:14] for line in news(told, [workers], T + 40)] == ["waited   for 1"]
