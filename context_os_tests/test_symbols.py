"""The symbols connector: each language, git and plain folders, and everything that can be wrong with a file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from context_os.connectors import Known, Listing, Repository, Unit
from context_os.connectors._languages import LANGUAGES, language_of
from context_os.connectors._syntax import DEEPEST, Parsed, parse
from context_os.connectors.symbols import Symbols
from context_os.errors import SourceError, SourceRefused
from context_os.git import Git, blob_hash
from context_os.model import KnowledgeItem, item_id
from context_os.plugins import load


class Case(NamedTuple):
    path: str
    title: str
    source: str
    definitions: str
    links: str


CASES = [
    Case(
        "src/shop/orders.py",
        "shop.orders",
        '''\
"""Orders and what happens to them.

More about orders.
"""
from __future__ import annotations

import json as js
from decimal import Decimal

from . import money
from .base import Model as Base, helper

LIMIT = 10


def total(lines: list[int]) -> int:
    """Sum of the lines."""
    return sum(lines) + money.round_up(Decimal("1"))


# Orders are frozen.
@helper(frozen=True)
class Order(Base, money.Priced[int]):
    """One order."""

    size: int = 3

    @property
    def price(self) -> int:
        return total([self.size]) + self._tax()

    def _tax(self) -> int:
        def rate() -> int:
            return 7

        return rate() * js.loads("1").real

    class Meta:
        table = "orders"
''',
        """
        function total 16-18
        class Order 21-39
        method Order.price 28-30
        method Order._tax 32-36
        function Order._tax.rate 33-34
        class Order.Meta 38-39
        """,
        """
        module: imports symbol:json 1
        module: imports symbol:decimal 1
        module: imports symbol:decimal.Decimal 0.9
        module: imports symbol:shop 1
        module: imports symbol:shop.money 0.9
        module: imports symbol:shop.base 1
        module: imports symbol:shop.base.Model 0.9
        module: imports symbol:shop.base.helper 0.9
        total: calls symbol:shop.money.round_up 0.9
        total: calls symbol:decimal.Decimal 0.9
        Order: inherits symbol:shop.base.Model 0.9
        Order: inherits symbol:shop.money.Priced 0.9
        Order.price: calls total 1
        Order.price: calls Order._tax 0.95
        Order._tax: calls Order._tax.rate 1
        Order._tax: calls symbol:json.loads 0.9
        """,
    ),
    Case(
        "web/src/cart.js",
        "web.src.cart",
        """\
'use strict'
// The cart.

import Store, { save as persist } from './store.js'
const { join } = require('path')
const util = require('../lib/util')

/** Adds an item. */
export function add(cart, item) {
  persist(cart)
  return util.merge(cart, join('a', 'b'))
}

export default class Cart extends Store {
  #items = []
  add = (item) => { this.total(); add(this, item) }
  static async total() { return new Cart() }
}

const empty = () => add({}, null)
exports.clear = function clear(cart) { cart.items.map(x => x) }
Cart.prototype.size = function () { return this.total() }
const helpers = {
  pad(text) { return empty() },
  trim: function (text) { return helpers.pad(text) },
}
export const View = () => <Cart.Row><Button /></Cart.Row>
""",
        """
        function add 8-12
        class Cart 14-18
        method Cart.add 16-16
        method Cart.total 17-17
        function empty 20-20
        function clear 21-21
        method Cart.size 22-22
        function helpers.pad 24-24
        function helpers.trim 25-25
        function View 27-27
        """,
        """
        module: imports path:web/src/store.js 0.9
        module: imports symbol:web.src.store 0.9
        module: imports symbol:web.src.store.save 0.9
        module: imports symbol:path 0.9
        module: imports symbol:path.join 0.9
        module: imports path:web/lib/util.js 0.7
        module: imports symbol:web.lib.util 0.9
        add: calls symbol:web.src.store.save 0.9
        add: calls symbol:web.lib.util.merge 0.9
        add: calls symbol:path.join 0.9
        Cart: inherits symbol:web.src.store 0.9
        Cart.add: calls Cart.total 0.95
        Cart.add: calls add 1
        Cart.total: calls Cart 1
        empty: calls add 1
        Cart.size: calls Cart.total 0.95
        helpers.pad: calls empty 1
        helpers.trim: calls helpers.pad 1
        View: calls symbol:Button 0.5
        """,
    ),
    Case(
        "web/src/api.ts",
        "web.src.api",
        """\
import type { Options } from './options'
import * as http from './http'

export interface Client extends Base<string> { get(url: string): string; timeout: number }
export enum Color { Red, Green }
export type Id = string | number

export function load(id: string): Client;
export function load(id: number): Client;
export function load(id: any): Client {
  return http.fetchClient(id)
}

@Injectable()
export class Service extends http.Base implements Client, Other<number> {
  private timeout = 3
  constructor(private readonly opts: Options) { super() }
  /** Gets it. */
  protected async get(url: string): Promise<string> { return this.parse(load(1)) }
  private parse = (x: Client): string => String(x)
}
export abstract class Shape { abstract area(): number }
namespace Geo { export function dist() { return load('a') } }
""",
        """
        class Client 4-4
        class Color 5-5
        class Id 6-6
        function load 8-8
        function load 9-9
        function load 10-12
        class Service 14-21
        method Service.constructor 17-17
        method Service.get 18-19
        method Service.parse 20-20
        class Shape 22-22
        method Shape.area 22-22
        function Geo.dist 23-23
        """,
        """
        module: imports path:web/src/options.ts 0.7
        module: imports symbol:web.src.options 0.9
        module: imports symbol:web.src.options.Options 0.9
        module: imports path:web/src/http.ts 0.7
        module: imports symbol:web.src.http 0.9
        Client: inherits symbol:Base 0.5
        load: calls symbol:web.src.http.fetchClient 0.9
        Service: inherits symbol:web.src.http.Base 0.9
        Service: inherits Client 1
        Service: inherits symbol:Other 0.5
        Service.get: calls Service.parse 0.95
        Service.get: calls load 1
        Geo.dist: calls load 1
        """,
    ),
    Case(
        "cmd/server.go",
        "cmd/server.go",
        """\
// Package web serves.
package web

import (
	"fmt"
	r "github.com/acme/kit/render"
	"github.com/acme/kit/v2"
)

const Port = 80

// Engine is the core.
type Engine struct {
	Router
	*kit.Base
	name string
}

type (
	Handler func(*Engine) error
	// Runner runs.
	Runner interface {
		fmt.Stringer
		Run() error
	}
)

// New makes one.
func New() *Engine { return &Engine{name: helper()} }

// Use adds.
func (e *Engine) Use(h Handler) error {
	e.reset()
	r.JSON(len(e.name))
	return other(fmt.Sprint("x"))
}

func (e *Engine) reset() {}
func Map[T any](xs []T) {}
""",
        """
        class Engine 12-17
        class Handler 20-20
        class Runner 21-25
        function New 28-29
        method Engine.Use 31-36
        method Engine.reset 38-38
        function Map 39-39
        """,
        """
        module: imports symbol:fmt 1
        module: imports symbol:github.com/acme/kit/render 1
        module: imports symbol:render 0.6
        module: imports symbol:github.com/acme/kit/v2 1
        module: imports symbol:kit 0.6
        Engine: inherits symbol:web.Router 0.5
        Engine: inherits symbol:kit.Base 0.9
        Runner: inherits symbol:fmt.Stringer 0.9
        New: calls Engine 1
        New: calls symbol:web.helper 0.7
        Engine.Use: calls Engine.reset 0.95
        Engine.Use: calls symbol:render.JSON 0.9
        Engine.Use: calls symbol:web.other 0.7
        Engine.Use: calls symbol:fmt.Sprint 0.9
        """,
    ),
    Case(
        "java/src/main/java/com/acme/Invoice.java",
        "java/src/main/java/com/acme/Invoice.java",
        """\
package com.acme;

import java.util.List;
import static com.acme.Money.round;
import com.acme.tax.*;

/**
 * An invoice.
 *
 * Long text.
 */
@Entity
public class Invoice extends Document<Line> implements Comparable<Invoice>, Printable {
    private final List<Line> lines;

    public Invoice(List<Line> lines) { this.lines = lines; }

    /** The total. */
    @Override
    public int total() {
        return round(sum() + this.tax(2) + lines.size() + Rates.current());
    }

    int sum() { return new Line().amount(); }
    int tax(int rate) { return rate; }
    int tax(int rate, int extra) { return rate + extra; }

    enum State { OPEN, PAID }
    interface Visitor { void visit(Invoice i); }
    record Pair(int a, int b) {}
}
""",
        """
        class Invoice 7-31
        method Invoice.Invoice 16-16
        method Invoice.total 18-22
        method Invoice.sum 24-24
        method Invoice.tax 25-25
        method Invoice.tax 26-26
        class Invoice.State 28-28
        class Invoice.Visitor 29-29
        method Invoice.Visitor.visit 29-29
        class Invoice.Pair 30-30
        """,
        """
        module: imports symbol:java.util.List 1
        module: imports symbol:com.acme.Money.round 1
        module: imports symbol:com.acme.tax 0.7
        Invoice: inherits symbol:Document 0.5
        Invoice: inherits symbol:Comparable 0.5
        Invoice: inherits symbol:Printable 0.5
        Invoice.total: calls symbol:com.acme.Money.round 0.9
        Invoice.total: calls Invoice.sum 0.95
        Invoice.total: calls Invoice.tax 0.95
        Invoice.total: calls symbol:Rates.current 0.6
        Invoice.sum: calls symbol:Line 0.5
        Invoice.sum: calls symbol:amount 0.4
        """,
    ),
    Case(
        "rs/crates/my-lib/src/shapes.rs",
        "my_lib.shapes",
        """\
//! Shapes.
use std::fmt::{self, Display};
use crate::geo::{Point, ops::{add as plus, *}};
mod inner;

/// A circle.
#[derive(Debug)]
pub struct Circle { pub r: f64 }

pub enum Kind { A, B }

pub trait Area: Display {
    fn area(&self) -> f64;
    fn twice(&self) -> f64 { self.area() * 2.0 }
}

impl Circle {
    /// Makes one.
    pub fn new(r: f64) -> Self { plus(r, helper(r)); Self::check(r); Circle { r } }
    fn check(r: f64) {}
}

impl<T> Area for Circle {
    fn area(&self) -> f64 { Point::zero().norm() }
}

fn helper(r: f64) -> f64 { inner::half(r) }

macro_rules! square { ($x:expr) => { $x * $x }; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes() { assert_eq!(helper(1.0), plus(1.0, Circle::new(2.0).r)); }
}
""",
        """
        class Circle 6-8
        class Kind 10-10
        class Area 12-15
        method Area.area 13-13
        method Area.twice 14-14
        class impl Circle 17-21
        method Circle.new 18-19
        method Circle.check 20-20
        class impl Area for Circle 23-25
        method Circle.area 24-24
        function helper 27-27
        function square 29-29
        function tests.makes 35-36
        """,
        """
        module: imports symbol:std.fmt 0.9
        module: imports symbol:std.fmt.Display 0.9
        module: imports symbol:my_lib.geo.Point 0.9
        module: imports symbol:my_lib.geo.ops.add 0.9
        module: imports symbol:my_lib.geo.ops 0.7
        module: imports symbol:my_lib.shapes.inner 1
        module: imports symbol:my_lib.shapes 0.7
        Area: inherits symbol:std.fmt.Display 0.9
        Area.twice: calls Area.area 0.95
        Circle.new: calls symbol:my_lib.geo.ops.add 0.9
        Circle.new: calls helper 1
        Circle.new: calls Circle.check 0.95
        Circle.new: calls Circle 1
        impl Area for Circle: inherits Area 1
        Circle.area: calls symbol:my_lib.geo.Point.zero 0.9
        Circle.area: calls symbol:norm 0.4
        helper: calls symbol:my_lib.shapes.inner.half 0.9
        tests.makes: calls helper 1
        tests.makes: calls symbol:my_lib.geo.ops.add 0.9
        tests.makes: calls Circle.new 1
        tests.makes: tests helper 0.9
        tests.makes: tests symbol:my_lib.geo.ops.add 0.8
        tests.makes: tests Circle.new 0.9
        """,
    ),
    Case(
        "include/list.h",
        "include/list.h",
        """\
/* A list. */
#ifndef LIST_H
#define LIST_H
#include <stddef.h>
#include "node.h"
#define MAX(a, b) ((a) > (b) ? (a) : (b))

typedef struct { int x; } point_t;

/** A list of nodes. */
struct list {
    struct node *head;
    size_t size;
};

enum color { RED, GREEN };

/* Makes a list. */
struct list *list_new(size_t size);
static int list_len(struct list *l);

static int list_len(struct list *l) { return MAX(node_count(l->head), l->size); }
char *list_name(void) { return l->ops.name(list_len(0)); }
#endif
""",
        """
        function MAX 6-6
        class point_t 8-8
        class list 10-14
        class color 16-16
        function list_new 18-19
        function list_len 22-22
        function list_name 23-23
        """,
        """
        module: imports symbol:stddef.h 0.6
        module: imports path:include/node.h 0.8
        module: imports symbol:node.h 0.6
        list_len: calls MAX 1
        list_len: calls symbol:node_count 0.5
        list_name: calls symbol:name 0.4
        list_name: calls list_len 1
        """,
    ),
    Case(
        "lib/shape.cpp",
        "lib/shape.cpp",
        """\
#include "shape.hpp"
#include <vector>

namespace geo {

/// A shape.
template <typename T>
class Shape : public Base<T>, private util::Mixin {
public:
    Shape(int n) : n_(n) {}
    ~Shape();
    virtual double area() const = 0;
    int count() { return helper(n_); }
    bool operator==(const Shape& o) const { return count() == o.count(); }
private:
    int n_;
};

int helper(int n) { return std::max(n, geo::twice(n)); }

namespace detail { struct Node { int v; }; }

}  // namespace geo

double geo::Circle::area() const { return this->radius() * make<int>(2); }
std::string& name() { auto* s = new geo::Shape<int>(3); return s->label(); }
""",
        """
        class Shape 6-17
        method Shape.Shape 10-10
        method Shape.~Shape 11-11
        method Shape.area 12-12
        method Shape.count 13-13
        method Shape.operator== 14-14
        function helper 19-19
        class Node 21-21
        method geo.Circle.area 25-25
        function name 26-26
        """,
        """
        module: imports path:lib/shape.hpp 0.8
        module: imports symbol:shape.hpp 0.6
        module: imports symbol:vector 0.6
        Shape: inherits symbol:Base 0.5
        Shape: inherits symbol:util.Mixin 0.5
        Shape.count: calls helper 1
        Shape.operator==: calls Shape.count 0.95
        Shape.operator==: calls symbol:count 0.4
        helper: calls symbol:geo.twice 0.6
        geo.Circle.area: calls symbol:radius 0.4
        geo.Circle.area: calls symbol:make 0.5
        name: calls Shape 1
        name: calls symbol:label 0.4
        """,
    ),
    Case(
        "src/Invoice.cs",
        "src/Invoice.cs",
        """\
using System;
using Acme.Tax;
using Money = Acme.Core.Money;

namespace Acme.Billing;

/// <summary>An invoice.</summary>
[Serializable]
public class Invoice : Document<Line>, IPrintable
{
    public int Size { get; set; }

    public Invoice(int size) { Size = size; }

    /// <summary>Total.</summary>
    public int Total(int rate) => Sum() + Money.Round(rate) + this.Tax?.Apply<int>(3) + new Line(1).Amount;

    private int Sum() { int Local() { return 1; } return Local() + Rates.Current(); }
}

public interface IPrintable { void Print(); }
public record Line(int Amount);
public enum State { Open, Paid }
public struct Point { public int X; }
""",
        """
        class Invoice 7-19
        method Invoice.Invoice 13-13
        method Invoice.Total 15-16
        method Invoice.Sum 18-18
        function Invoice.Sum.Local 18-18
        class IPrintable 21-21
        method IPrintable.Print 21-21
        class Line 22-22
        class State 23-23
        class Point 24-24
        """,
        """
        module: imports symbol:System 0.7
        module: imports symbol:Acme.Tax 0.7
        module: imports symbol:Acme.Core.Money 1
        Invoice: inherits symbol:Document 0.5
        Invoice: inherits IPrintable 1
        Invoice.Total: calls Invoice.Sum 0.95
        Invoice.Total: calls symbol:Acme.Core.Money.Round 0.9
        Invoice.Total: calls symbol:Apply 0.4
        Invoice.Total: calls Line 1
        Invoice.Sum: calls Invoice.Sum.Local 1
        Invoice.Sum: calls symbol:Rates.Current 0.6
        """,
    ),
    Case(
        "lib/store.rb",
        "lib/store.rb",
        """\
# frozen_string_literal: true

require 'json'
require_relative 'store/base'

module Acme
  # Keeps things.
  class Store < Base::Thing
    include Enumerable
    attr_reader :items

    # Adds one.
    def add(item, count: 1)
      validate(item)
      Item.new(item).save
      items.each { |i| puts i }
      self.flush
    end

    def self.open(path) = new(path)

    def [](key)
      fetch_all
    end

    def fetch_all; end

    private

    def validate(item); end
    def flush; end
  end
end
""",
        """
        class Acme 6-33
        class Acme.Store 7-32
        method Acme.Store.add 12-18
        method Acme.Store.open 20-20
        method Acme.Store.[] 22-24
        method Acme.Store.fetch_all 26-26
        method Acme.Store.validate 30-30
        method Acme.Store.flush 31-31
        """,
        """
        module: imports symbol:json 0.9
        module: imports path:lib/store/base.rb 1
        Acme.Store: inherits symbol:Base.Thing 0.5
        Acme.Store: inherits symbol:Enumerable 0.5
        Acme.Store.add: calls Acme.Store.validate 0.95
        Acme.Store.add: calls symbol:Item 0.5
        Acme.Store.add: calls symbol:save 0.4
        Acme.Store.add: calls Acme.Store.flush 0.95
        Acme.Store.[]: calls Acme.Store.fetch_all 0.95
        """,
    ),
    Case(
        "php/Invoice.php",
        "php/Invoice.php",
        r"""<?php
declare(strict_types=1);

namespace Acme\Billing;

use Acme\Core\{Money, Tax as Levy};
use Acme\Document;
use function Acme\round_up;

require_once __DIR__ . '/helpers.php';

/**
 * An invoice.
 */
#[Entity]
final class Invoice extends Document implements \Countable
{
    use Printable;

    private array $lines = [];

    public function __construct(private int $size) {}

    /** Total. */
    public function total(): int
    {
        return round_up($this->sum()) + Money::of(3)->value() + count($this->lines) + self::tax(new Levy());
    }

    protected function sum(): int { return helper(1); }
    public static function tax($t): int { return 1; }
}

function helper(int $x): int { return $x; }
interface Printer { public function print(): void; }
""",
        """
        class Invoice 12-32
        method Invoice.__construct 22-22
        method Invoice.total 24-28
        method Invoice.sum 30-30
        method Invoice.tax 31-31
        function helper 34-34
        class Printer 35-35
        method Printer.print 35-35
        """,
        """
        module: imports symbol:Acme.Core.Money 1
        module: imports symbol:Acme.Core.Tax 1
        module: imports symbol:Acme.Document 1
        module: imports symbol:Acme.round_up 1
        module: imports path:php/helpers.php 0.7
        Invoice: inherits symbol:Acme.Document 0.9
        Invoice: inherits symbol:Countable 0.5
        Invoice: inherits symbol:Printable 0.5
        Invoice.total: calls symbol:Acme.round_up 0.9
        Invoice.total: calls Invoice.sum 0.95
        Invoice.total: calls symbol:Acme.Core.Money.of 0.9
        Invoice.total: calls symbol:value 0.4
        Invoice.total: calls Invoice.tax 0.95
        Invoice.total: calls symbol:Acme.Core.Tax 0.9
        Invoice.sum: calls helper 1
        """,
    ),
]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def git(root: Path, *arguments: str) -> str:
    identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c", "GIT_COMMITTER_NAME": "a"}
    environment = {**os.environ, **identity, "GIT_COMMITTER_EMAIL": "a@b.c", "GIT_CONFIG_GLOBAL": "/dev/null"}
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, env=environment)
    return done.stdout.decode().strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    write(
        root, {"pkg/a.py": "def one():\n    return 1\n", "pkg/b.go": "package b\nfunc B() {}\n", "README.md": "# x\n"}
    )
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def repository(root: Path, revision: str | None = None) -> Repository:
    return Repository("acme/shop", root, "acme", revision)


def ingest(root: Path, revision: str | None = None, **fields: int) -> tuple[Listing, dict[str, Unit]]:
    connector = Symbols(**fields)
    listing = connector.scan(repository(root, revision), Known())
    units = connector.read(repository(root, revision), listing, list(listing.units))
    return listing, {unit.key: unit for unit in units}


def one(root: Path, path: str, content: str | bytes) -> Unit:
    write(root, {path: content})
    return ingest(root)[1][path]


def titles(unit: Unit) -> list[str]:
    return [item.metadata.title for item in unit.items]


def item(unit: Unit, title: str) -> KnowledgeItem:
    return next(it for it in unit.items if it.metadata.title == title)


def links(parsed: Parsed) -> list[str]:
    """Relations in words; ``defines`` is left out, a test of its own holds it."""
    names = [symbol.title for symbol in parsed.symbols]
    names[0] = "module"
    return [
        f"{name}: {type_} {names[target] if isinstance(target, int) else target} {sure:g}"
        for name, symbol in zip(names, parsed.symbols, strict=True)
        for type_, target, sure in symbol.links
        if type_ != "defines"
    ]


def targets(parsed: Parsed, title: str, type_: str) -> list[tuple[str, float]]:
    names = [symbol.title for symbol in parsed.symbols]
    symbol = next(it for it in parsed.symbols if it.title == title)
    return [(names[it] if isinstance(it, int) else it, sure) for kind, it, sure in symbol.links if kind == type_]


# Languages


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_language(case: Case, tmp_path: Path) -> None:
    write(tmp_path, {case.path: case.source})
    unit = ingest(tmp_path)[1][case.path]
    module, *rest = unit.items
    assert unit.notes == ()
    assert (module.kind, module.metadata.title) == ("module", case.title)
    found = [f"{it.kind} {it.metadata.title} {it.source.start_line}-{it.source.end_line}" for it in rest]
    assert found == _lines(case.definitions)
    assert links(parse(case.path, case.source.encode())) == _lines(case.links)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_text_of_functions_is_the_source_of_their_lines(case: Case, tmp_path: Path) -> None:
    unit = one(tmp_path, case.path, case.source)
    lines = case.source.splitlines()
    for it in unit.items:
        if it.kind in {"function", "method"}:
            assert it.source.start_line is not None
            shown = [line.strip() for line in it.payload.text.splitlines()]
            there = [line.strip() for line in lines[it.source.start_line - 1 : it.source.end_line]]
            assert len(shown) == len(there)
            assert all(part in whole for part, whole in zip(shown, there, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_everything_is_defined_by_its_parent_exactly_once(case: Case, tmp_path: Path) -> None:
    unit = one(tmp_path, case.path, case.source)
    defined = [relation.target for it in unit.items for relation in it.relations if relation.type == "defines"]
    assert sorted(defined) == sorted(it.id for it in unit.items[1:])


def test_every_language_of_the_table_has_a_case() -> None:
    found = {language.name for case in CASES if (language := language_of(case.path, case.source.encode()))}
    assert found == {language.name for language in LANGUAGES}


def test_item_says_where_it_is_from(tmp_path: Path) -> None:
    source = (
        "class A:\n    '''An a.\n\n    More.'''\n\n    @staticmethod\n    def go(x: int) -> int:\n        return x\n"
    )
    unit = one(tmp_path, "src/pkg/mod.py", source)
    go = item(unit, "A.go")
    assert go.id == item_id("acme", "symbols", "acme/shop", "src/pkg/mod.py", "A.go", "0")
    assert go.source.model_dump() == {
        "type": "symbols",
        "location": str(tmp_path),
        "accessor": "tree-sitter",
        "revision": "",
        "repository": "acme/shop",
        "path": "src/pkg/mod.py",
        "language": "python",
        "start_line": 6,
        "end_line": 8,
        "metadata": {"blob": blob_hash(source.encode())},
    }
    assert go.payload.text == "@staticmethod\ndef go(x: int) -> int:\n    return x"
    assert go.payload.structured == {
        "name": "go",
        "qualified_name": "A.go",
        "signature": "def go(x: int) -> int",
        "docstring": "",
        "decorators": ["@staticmethod"],
        "visibility": "public",
    }
    assert go.symbols == ("go", "A.go", "pkg.mod.A.go")
    assert go.metadata.tags == ("python",)
    assert item(unit, "A").payload.structured["docstring"] == "An a."


def test_class_text_has_signatures_and_no_bodies() -> None:
    source = "class A(B):\n    '''Doc.'''\n\n    x: int = 3\n\n    # Why.\n    def f(self):\n        return hidden\n"
    text = parse("a.py", source.encode()).symbols[1].text
    assert text == "class A(B):\n    '''Doc.'''\n\n    x: int = 3\n\n    def f(self)"


def test_class_text_keeps_decorators_of_methods() -> None:
    java = b'class A {\n  /** Doc. */\n  @GetMapping("/x")\n  public int f(@Param int a) { return 1; }\n}\n'
    _, klass, method = parse("A.java", java).symbols
    assert klass.text == 'class A {\n  @GetMapping("/x")\n  public int f( int a)\n}'
    assert method.structured["signature"] == "public int f( int a)"
    assert method.structured["decorators"] == ['@GetMapping("/x")']


def test_module_text_has_statements_and_an_outline() -> None:
    source = (
        '"""Doc."""\nimport os\n\nX = 1\n\nclass A:\n    def f(self):\n        return hidden\n\nif X:\n    print(1)\n'
    )
    text = parse("a.py", source.encode()).symbols[0].text
    assert text == '"""Doc."""\nimport os\n\nX = 1\n\nif X:\n    print(1)\n\nclass A\n    def f(self)'


def test_module_text_is_bounded() -> None:
    source = "".join(f"VALUE_{i} = {i}\n" for i in range(20_000)) + "def f(): pass\n" * 5_000
    module = parse("a.py", source.encode()).symbols[0]
    assert len(module.text) < 50_000
    assert "more lines)" in module.text
    assert len(module.names) < 500


def test_package_file_defines_what_it_imports_and_exports() -> None:
    source = "from .main import Model as Base\nimport json\n__all__ = ['Base', 'lazy']\n"
    assert parse("pkg/__init__.py", source.encode()).symbols[0].names == (
        "pkg", "pkg.__all__", "pkg.Base", "pkg.lazy",
    )  # fmt: skip
    assert "pkg.mod.Base" not in parse("pkg/mod.py", source.encode()).symbols[0].names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("pydantic/main.py", "pydantic.main"),
        ("pydantic/__init__.py", "pydantic"),
        ("src/app/x.py", "app.x"),
        ("pydantic-core/python/pydantic_core/core_schema.py", "pydantic_core.core_schema"),
        ("setup.py", "setup"),
        ("lib/express.js", "lib.express"),
        ("web/index.ts", "web"),
        ("web/types.d.ts", "web.types"),
        ("src/lib.rs", "crate"),
        ("crates/my-lib/src/a/mod.rs", "my_lib.a"),
        ("crates/core/main.rs", "core"),
        ("crates/core/flags/defs.rs", "core.flags.defs"),
        ("tests/big.rs", "tests.big"),
    ],
)
def test_names_of_modules(path: str, name: str) -> None:
    assert parse(path, b"\n").symbols[0].title == name


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("p/a.py", "from .. import x", ["symbol:x"]),
        ("p/q/a.py", "from ..b.c import (d as e, # no\n f)", ["symbol:p.b.c", "symbol:p.b.c.d", "symbol:p.b.c.f"]),
        ("p/__init__.py", "from .a import *", ["symbol:p.a"]),
        ("a.py", "import a.b, c as d", ["symbol:a.b", "symbol:c"]),
        ("t/a.js", "const x = require('..')", ["path:index.js", "symbol:index"]),
        ("a/b.ts", "export { q } from './c.js'", ["path:a/c.ts", "symbol:a.c", "symbol:a.c.q"]),
        ("a.mjs", "import 'side'; const y = await import('dyn/z')", ["symbol:side", "symbol:dyn.z"]),
        ("src/a.rs", "use self::b::C; extern crate d; pub use e::*;", ["symbol:crate.a.b.C", "symbol:d", "symbol:e"]),
        ("a.php", "<?php use A\\{B, C\\D as E};", ["symbol:A.B", "symbol:A.C.D"]),
        ("a.cs", "global using static A.B;", ["symbol:A.B"]),
        ("s/a.cc", '#include <v>\n#include "../i/h.hpp"', ["symbol:v", "path:i/h.hpp", "symbol:../i/h.hpp"]),
    ],
)
def test_imports(path: str, source: str, expected: list[str]) -> None:
    parsed = parse(path, source.encode())
    assert [name for name, _ in targets(parsed, parsed.symbols[0].title, "imports")] == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("tests/test_orders.py", ("symbol:orders", 0.5)),
        ("pkg/orders_test.py", ("symbol:orders", 0.5)),
        ("web/cart_test.go", ("path:web/cart.go", 0.9)),
        ("src/CartTest.java", ("symbol:Cart", 0.7)),
        ("src/cart.spec.ts", ("path:src/cart.ts", 0.8)),
        ("src/__tests__/cart.test.jsx", ("path:src/cart.jsx", 0.8)),
        ("spec/cart_spec.rb", ("symbol:cart", 0.5)),
        ("tests/CartTest.php", ("symbol:Cart", 0.7)),
        ("CartTests.cs", ("symbol:Cart", 0.7)),
        ("tests/cart.rs", ("symbol:cart", 0.3)),
        ("tests/test_cart.c", ("symbol:cart", 0.5)),
    ],
)
def test_test_files_point_at_what_they_test(path: str, expected: tuple[str, float]) -> None:
    module = parse(path, b"\n").symbols[0]
    assert ("tests", *expected) in module.links
    assert "test" in module.tags


def test_test_functions_point_at_imported_names_they_call() -> None:
    source = (
        "import pytest, json\nfrom shop import total, Order\nfrom .helpers import build\n"
        "def test_total():\n    with pytest.raises(ValueError):\n"
        "        total(Order(1), json.loads('1'))\n    build()\n"
        "def helper():\n    total()\n"
    )
    parsed = parse("tests/test_shop.py", source.encode())
    assert targets(parsed, "test_total", "tests") == [
        ("symbol:shop.total", 0.8), ("symbol:shop.Order", 0.8), ("symbol:tests.helpers.build", 0.8),
    ]  # fmt: skip
    assert targets(parsed, "helper", "tests") == []
    assert parsed.symbols[-1].tags == ("python", "test")


def test_script_tests_without_functions_belong_to_the_module() -> None:
    source = (
        "import { add } from '../src/cart'\ndescribe('add', () => { it('adds', () => { expect(add(1)).toBe(2) }) })\n"
    )
    parsed = parse("test/cart.test.js", source.encode())
    assert ("symbol:src.cart.add", 0.8) in targets(parsed, "test.cart.test", "tests")


def test_calls_are_deduplicated_ordered_and_bounded() -> None:
    body = "".join(f"    f{i}()\n    f{i}()\n" for i in range(300))
    parsed = parse("a.py", f"def go():\n{body}".encode())
    assert [name for name, _ in targets(parsed, "go", "calls")] == [f"symbol:f{i}" for i in range(100)]


def test_builtins_and_recursion_are_no_calls() -> None:
    parsed = parse("a.py", b"def go(x):\n    print(len(x), x.strip(), go(x), known(x))\n")
    assert targets(parsed, "go", "calls") == [("symbol:known", 0.5)]


def test_own_definition_beats_a_builtin() -> None:
    parsed = parse("a.py", b"def print(x): pass\ndef go(): print(1)\n")
    assert targets(parsed, "go", "calls") == [("print", 1.0)]


def test_overloads_and_redefinitions_have_ids_of_their_own(tmp_path: Path) -> None:
    source = (
        "@overload\ndef f(a: int): ...\n@overload\ndef f(a: str): ...\ndef f(a): return g()\ndef g(): return f(1)\n"
    )
    unit = one(tmp_path, "a.py", source)
    ids = {it.payload.structured["signature"]: it.id for it in unit.items if it.metadata.title == "f"}
    assert len(set(ids.values())) == 3
    assert item(unit, "g").relations[0].target == ids["def f(a)"], "a call means the last one, which has the body"
    moved = one(tmp_path, "a.py", "import os\n\n\n" + source)
    assert ids == {it.payload.structured["signature"]: it.id for it in moved.items if it.metadata.title == "f"}


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("a.cc", "A<T>::B& C<D<E>>::f() { return x; }", ["C.f"]),
        ("a.cc", "bool A::operator==(const A& a) {} A::operator bool() const {}", ["A.operator==", "A.operator bool"]),
        ("a.cc", "int A::operator()(int a) {} auto f(A a) -> B<C> { return a->b<c>(); }", ["A.operator()", "f"]),
        ("a.rb", "class ::A; def <=>(o); end; def []=(a, b); end; def b?; end; end", ["A", "A.<=>", "A.[]=", "A.b?"]),
        (
            "a.js",
            "module.exports.a = function () {}; exports.b = () => 1; C.prototype.d = async () => 2",
            ["a", "b", "C.d"],
        ),
        ("a.rs", "impl<'a, T: B<C>> D<T> for &'a mut E<T> { fn f() {} }", ["impl D for E", "E.f"]),
        ("a.go", "package a\nfunc (s *Set[K, V]) Add(k K) {}", ["Set.Add"]),
    ],
)
def test_names_of_definitions(path: str, source: str, expected: list[str]) -> None:
    assert [it.title for it in parse(path, source.encode()).symbols[1:]] == expected


def test_prototype_gives_way_to_its_definition() -> None:
    parsed = parse("a.c", b"int f(void);\nint g(void);\nint f(void) { return g(); }\n")
    assert [(it.title, it.start_line) for it in parsed.symbols[1:]] == [("g", 2), ("f", 3)]


def test_headers_are_c_or_cplusplus_by_what_they_hold() -> None:
    assert parse("a.h", b"struct a { int b; };\n").language == "c"
    assert parse("a.h", b"namespace a { class B {}; }\n").language == "cpp"


def test_decorators_and_comments_belong_to_what_follows_them() -> None:
    source = "# far\n\n# near\n# too\n@a\n@b(1)\nclass C:  # not this\n    # inner\n    @c\n    def f(self): pass\n"
    _, klass, method = parse("a.py", source.encode()).symbols
    assert (klass.start_line, klass.structured["decorators"]) == (3, ["@a", "@b(1)"])
    assert (method.start_line, method.structured["decorators"]) == (8, ["@c"])
    assert klass.structured["docstring"] == "near too"
    assert klass.structured["signature"] == "class C"


def test_parsed_is_plain_data_for_other_processes() -> None:
    parsed = parse(CASES[0].path, CASES[0].source.encode())
    assert pickle.loads(pickle.dumps(parsed)) == parsed


# Files that are odd, broken or hostile


def test_broken_file_gives_what_parsed(tmp_path: Path) -> None:
    unit = one(
        tmp_path, "a.py", "def good():\n    return 1\n\ndef bad(:\n    return ]\n\ndef fine():\n    return good()\n"
    )
    assert {"good", "fine"} <= set(titles(unit))
    assert unit.notes == ("syntax errors at lines 4, 5",)


def test_missing_token_is_noted_with_its_line() -> None:
    assert parse("a.c", b"int a;\nint f() { return 1 }\n").notes == ("syntax errors at line 2",)


def test_line_ends_byte_order_mark_and_tabs_change_nothing() -> None:
    plain = "class A:\n\tdef f(self):\n\t\treturn g()\n"
    twin = ("\ufeff" + plain.replace("\n", "\r\n")).encode()
    assert parse("a.py", plain.encode()) == parse("a.py", twin)
    assert parse("a.py", twin).symbols[2].text == "def f(self):\n\treturn g()"


def test_unicode_names(tmp_path: Path) -> None:
    unit = one(
        tmp_path, "größe.py", "class Größe:\n    def 面積(self): return self.λ()\n    def λ(self): return '😀'\n"
    )
    assert titles(unit) == ["größe", "Größe", "Größe.面積", "Größe.λ"]
    assert item(unit, "Größe.面積").relations[0].target == item(unit, "Größe.λ").id
    assert item(unit, "Größe.λ").payload.text == "def λ(self): return '😀'"


def test_latin1_bytes_are_replaced_with_a_note(tmp_path: Path) -> None:
    unit = one(tmp_path, "a.py", "x = 1\ndef f(): return 'caf\xe9'\n".encode("latin-1"))
    assert unit.notes == ("not UTF-8 from line 2 on: bytes were replaced",)
    assert item(unit, "f").payload.text == "def f(): return 'caf\ufffd'"


@pytest.mark.parametrize("content", ["", "\n", "   \n\n", "\ufeff"])
def test_empty_file_is_a_module(content: str, tmp_path: Path) -> None:
    (module,) = one(tmp_path, "pkg/__init__.py", content).items
    assert (module.metadata.title, module.payload.text, module.source.start_line) == ("pkg", "(empty)", 1)


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda it: it.extensions[0])
@pytest.mark.parametrize("pattern", ["(", "[", "{", "f("])
def test_ten_thousand_levels(language: object, pattern: str) -> None:
    path = "x" + language.extensions[0]  # type: ignore[attr-defined]
    closing = {"(": ")", "[": "]", "{": "}"}[pattern[-1]]
    started = time.process_time()
    parse(path, (pattern * 10_000 + "1" + closing * 10_000).encode())
    assert time.process_time() - started < 10


def test_chain_of_ten_thousand_calls() -> None:
    started = time.process_time()
    parsed = parse("a.py", ("def go(): a" + ".b()" * 10_000 + "\n").encode())
    assert targets(parsed, "go", "calls") == [("symbol:b", 0.4)]
    assert time.process_time() - started < 10


@pytest.mark.parametrize(("path", "pattern"), [("a.rb", "function f() { "), ("a.py", "f("), ("a.js", "a(function(){")])
def test_trees_of_any_depth(path: str, pattern: str) -> None:
    started = time.process_time()
    assert parse(path, (pattern * 30_000).encode()).language
    assert time.process_time() - started < 15


@pytest.mark.parametrize("path", ["A.java", "A.cs"])
def test_rubbish_that_would_take_for_ever_is_not_parsed(path: str) -> None:
    parsed = parse(path, b"a<" * 400_000)
    assert (parsed.symbols, parsed.notes) == ((), ("too ambiguous to read",))


def test_parsing_is_given_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    source = b"def f(): pass\n" * 100
    assert len(parse("a.py", source).symbols) == 101
    monkeypatch.setattr("context_os.connectors._syntax._PATIENCE", -1.0)
    assert parse("a.py", source).notes == ("too ambiguous to read",)


def test_nesting_of_definitions_is_cut() -> None:
    source = "".join(f"{' ' * i}def f{i}():\n" for i in range(300)) + " " * 300 + "call()\n"
    parsed = parse("a.py", source.encode())
    assert len(parsed.symbols) == DEEPEST + 1
    assert targets(parsed, ".".join(f"f{i}" for i in range(DEEPEST)), "calls") == [("symbol:call", 0.5)]


def test_rubble_is_not_read() -> None:
    started = time.process_time()
    parsed = parse("a.py", b"(" * 900_000)
    assert (parsed.symbols, parsed.notes) == ((), ("too broken to read, from line 1 on",))
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.go", "// Code generated by protoc. DO NOT EDIT.\npackage a\nfunc F() {}\n", "skipped: generated"),
        ("a.js", "/**\n * @generated by relay\n */\nfunction f() {}\n", "skipped: generated"),
        ("a.cs", "// <auto-generated/>\nclass A {}\n", "skipped: generated"),
        ("a.py", b"x = 1\n\0\0", "skipped: binary"),
    ],
)
def test_generated_and_binary_are_units_without_items(name: str, content: str, note: str, tmp_path: Path) -> None:
    unit = one(tmp_path, name, content)
    assert (unit.items, unit.notes) == ((), (note,))
    assert unit.hash == blob_hash((tmp_path / name).read_bytes())


def test_a_file_that_mentions_the_marker_is_not_generated(tmp_path: Path) -> None:
    assert one(tmp_path, "a.py", "MARK = '@generated'\n").items


def test_what_scan_skips_is_counted(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.py": "x = 1\n",
            "b.min.js": "f()",
            "vendor/x/a.go": "package a",
            "node_modules/x.js": "f()",
            "big.py": b"x" * 2_001,
            "README.md": "",
            "photo.png": b"\0",
        },
    )
    (tmp_path / "link.py").symlink_to("a.py")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "dangling.py").symlink_to("nowhere")
    listing, _ = ingest(tmp_path, max_bytes=2_000)
    assert list(listing.units) == ["a.py"]
    assert listing.skipped == {"generated": 1, "vendored": 2, "huge": 1, "unsupported": 2, "symlink": 3}
    assert "big.py" in ingest(tmp_path, max_bytes=2_001)[0].units


def test_a_name_that_is_no_text_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": ""})
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.py"))).write_bytes(b"")
    assert ingest(tmp_path)[0].skipped == {"undecodable": 1}


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.py")
    assert ingest(tmp_path)[0].skipped == {"unsupported": 1}


# Git


def test_working_tree_and_revision_agree(repo: Path) -> None:
    tree, at_tree = ingest(repo)
    commit, at_commit = ingest(repo, "HEAD")
    assert tree.revision == commit.revision == git(repo, "rev-parse", "HEAD")
    assert (
        tree.units
        == commit.units
        == {"pkg/a.py": git(repo, "rev-parse", "HEAD:pkg/a.py"), "pkg/b.go": commit.units["pkg/b.go"]}
    )
    assert [[(it.id, it.metadata.checksum) for it in unit.items] for unit in at_tree.values()] == [
        [(it.id, it.metadata.checksum) for it in unit.items] for unit in at_commit.values()
    ]
    assert commit.skipped == {"unsupported": 1}


def test_bare_repository(repo: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.git"
    git(repo, "clone", "-q", "--bare", str(repo), str(bare))
    listing, units = ingest(bare)
    assert listing.revision == git(repo, "rev-parse", "HEAD")
    assert titles(units["pkg/a.py"]) == ["pkg.a", "one"]
    assert units["pkg/a.py"].items[0].source.revision == listing.revision


def test_old_revision_is_read_as_it_was(repo: Path) -> None:
    first = git(repo, "rev-parse", "HEAD")
    write(repo, {"pkg/a.py": "def two(): pass\n"})
    git(repo, "commit", "-qam", "second")
    assert titles(ingest(repo, first)[1]["pkg/a.py"]) == ["pkg.a", "one"]
    assert titles(ingest(repo, "HEAD")[1]["pkg/a.py"]) == ["pkg.a", "two"]


def test_edit_that_keeps_size_and_time_is_seen(repo: Path) -> None:
    before, _ = ingest(repo)
    path = repo / "pkg/a.py"
    times = path.stat()
    path.write_text("def two():\n    return 2\n")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    git(repo, "update-index", "--assume-unchanged", "pkg/a.py")
    after, units = ingest(repo)
    assert path.stat().st_size == times.st_size
    assert after.units["pkg/a.py"] != before.units["pkg/a.py"]
    assert after.revision == before.revision + "+"
    assert titles(units["pkg/a.py"]) == ["pkg.a", "two"]


def test_untracked_deleted_and_ignored(repo: Path) -> None:
    write(repo, {"new.py": "", "build/out.py": "", ".gitignore": "build/\n"})
    listing, _ = ingest(repo)
    assert list(listing.units) == ["new.py", "pkg/a.py", "pkg/b.go"]
    assert listing.revision.endswith("+")
    (repo / "new.py").unlink()
    assert not ingest(repo)[0].revision.endswith("+"), "an ignore file is no source"
    (repo / "pkg/a.py").unlink()
    listing, _ = ingest(repo)
    assert (list(listing.units), listing.revision[-1]) == (["pkg/b.go"], "+")


def test_links_and_submodules_are_not_followed(repo: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside, {"a.py": "SECRET = 1\n"})
    (repo / "link.py").symlink_to(outside / "a.py")
    git(repo, "add", "-A")
    git(repo, "update-index", "--add", "--cacheinfo", f"160000,{git(repo, 'rev-parse', 'HEAD')},sub")
    (repo / "sub").mkdir()
    git(repo, "commit", "-qm", "links")
    (repo / "pkg").rename(tmp_path / "gone")
    (repo / "pkg").symlink_to(outside)
    assert ingest(repo, "HEAD")[0].skipped == {"symlink": 1, "submodule": 1, "unsupported": 1}
    listing, units = ingest(repo)
    assert units == {}
    assert listing.skipped["symlink"] >= 2
    assert listing.skipped["submodule"] == 1


def test_file_that_vanishes_after_the_scan_has_no_hash(repo: Path) -> None:
    connector = Symbols()
    listing = connector.scan(repository(repo), Known())
    (repo / "pkg/a.py").unlink()
    (unit,) = connector.read(repository(repo), listing, ["pkg/a.py"])
    assert (unit.hash, unit.items, unit.notes) == ("", (), ("gone since it was listed",))


def test_file_edited_after_the_scan_has_the_hash_of_what_was_read(repo: Path) -> None:
    connector = Symbols()
    listing = connector.scan(repository(repo), Known())
    write(repo, {"pkg/a.py": "def late(): pass\n"})
    (unit,) = connector.read(repository(repo), listing, ["pkg/a.py"])
    assert unit.hash == blob_hash(b"def late(): pass\n") != listing.units["pkg/a.py"]


def test_same_blob_under_two_paths(repo: Path) -> None:
    write(repo, {"pkg/c.py": (repo / "pkg/a.py").read_bytes()})
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "copy")
    _, units = ingest(repo, "HEAD")
    assert titles(units["pkg/a.py"]) == ["pkg.a", "one"]
    assert titles(units["pkg/c.py"]) == ["pkg.c", "one"]


def test_repository_without_commits(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    write(tmp_path, {"a.py": "x = 1\n"})
    listing, _ = ingest(tmp_path)
    assert (listing.revision, list(listing.units)) == ("+", ["a.py"])


def test_scan_of_a_revision_opens_no_blob(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a blob was asked for")

    monkeypatch.setattr(Git, "blobs", refuse)
    assert len(Symbols().scan(repository(repo, "HEAD"), Known()).units) == 2


def test_what_cannot_be_read_is_said(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceRefused, match="not a directory"):
        ingest(tmp_path / "nothing")
    with pytest.raises(SourceRefused, match="no revision 'nope'"):
        ingest(repo, "nope")
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(SourceRefused, match="not a git repository"):
        ingest(plain, "HEAD")
    (plain / ".git").mkdir()
    with pytest.raises(SourceRefused, match="not a git repository"):
        ingest(plain)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_stops_the_scan(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": ""})
    (tmp_path / "a.py").chmod(0)
    with pytest.raises(SourceError, match="make it readable or ignore it"):
        ingest(tmp_path)


# Folders outside git


def test_folder_respects_ignore_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "*.gen.py\n/build\nlogs/\n!keep.gen.py\n",
            "a.py": "", "a.gen.py": "", "keep.gen.py": "", "build/b.py": "", "x/build/c.py": "", "x/logs/d.py": "",
            "x/.gitignore": "local.py\n!special.gen.py\n",
            "x/local.py": "", "x/special.gen.py": "", "x/y/local.py": "", "local.py": "",
            ".git-not/e.py": "",
        },
    )  # fmt: skip
    expected = [".git-not/e.py", "a.py", "keep.gen.py", "local.py", "x/build/c.py", "x/special.gen.py"]
    assert sorted(ingest(tmp_path)[0].units) == expected
    git(tmp_path, "init", "-q")
    assert sorted(ingest(tmp_path)[0].units) == expected, "git itself agrees"


def test_ids_do_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    one_place, other = tmp_path / "a", tmp_path / "b"
    first = one(one_place, "m.py", "def f(): pass\n")
    second = one(other, "m.py", "def f(): pass\n")
    assert [(it.id, it.metadata.checksum) for it in first.items] == [
        (it.id, it.metadata.checksum) for it in second.items
    ]


def test_edit_of_one_function_changes_only_what_it_touches(tmp_path: Path) -> None:
    before = one(tmp_path, "m.py", "def f():\n    return 1\n\ndef g():\n    return 2\n")
    after = one(tmp_path, "m.py", "def f():\n    return 9\n\ndef g():\n    return 2\n")
    changed = [
        old.metadata.title
        for old, new in zip(before.items, after.items, strict=True)
        if old.metadata.checksum != new.metadata.checksum
    ]
    assert changed == ["f"]


def test_the_plugin_is_found_by_name() -> None:
    assert load("connectors", "symbols").__name__ == "Symbols"


def test_import_loads_no_grammar() -> None:
    code = "import sys, context_os.connectors.symbols; print([m for m in sys.modules if m.startswith('tree_sitter_')])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# Laws


PATHS = st.sampled_from([f"src/x{extension}" for language in LANGUAGES for extension in language.extensions[:1]])
FRAGMENTS = st.sampled_from(
    [line for case in CASES for line in case.source.splitlines(keepends=True)]
    + list("(){}[]<>;:,.\"'`#/*\\\n\r\t ")
    + ["'''", '"""', "/*", "*/", "\0", "\ufeff", "é", "😀"]
)


def assert_sound(path: str, data: bytes) -> None:
    parsed = parse(path, data)
    lines = data.count(b"\n") + 1
    assert len({symbol.key for symbol in parsed.symbols}) == len(parsed.symbols)
    for symbol in parsed.symbols:
        assert 1 <= symbol.start_line <= symbol.end_line <= lines
        assert symbol.title
        assert symbol.text
        for _, target, confidence in symbol.links:
            assert 0 < confidence <= 1
            assert 0 < target < len(parsed.symbols) if isinstance(target, int) else ":" in target
    links_to_self = [it for place, it in enumerate(parsed.symbols) for link in it.links if link[1] == place]
    assert links_to_self == []


@given(path=PATHS, data=st.binary(max_size=300))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_read(path: str, data: bytes) -> None:
    assert_sound(path, data)


@given(path=PATHS, parts=st.lists(FRAGMENTS, max_size=60))
@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
def test_any_shuffled_source_is_read(path: str, parts: list[str]) -> None:
    assert_sound(path, "".join(parts).encode())


@given(case=st.sampled_from(CASES), start=st.integers(0, 2_000), length=st.integers(0, 40), by=st.binary(max_size=3))
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_damaged_source_is_read(case: Case, start: int, length: int, by: bytes) -> None:
    data = case.source.encode()
    assert_sound(case.path, data[:start] + by + data[start + length :])


@given(data=st.binary(max_size=200), path=PATHS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_items_of_any_bytes_are_valid(tmp_path_factory: pytest.TempPathFactory, data: bytes, path: str) -> None:
    root = tmp_path_factory.mktemp("any")
    unit = one(root, path, data)
    ids = {it.id for it in unit.items}
    assert len(ids) == len(unit.items)
    for it in unit.items:
        assert KnowledgeItem.model_validate_json(it.model_dump_json(by_alias=True)).id == it.id
        assert all(":" in relation.target or relation.target in ids for relation in it.relations)


@given(case=st.sampled_from(CASES), blank=st.integers(1, 30))
@settings(max_examples=40)
def test_keys_survive_moves_of_lines(case: Case, blank: int) -> None:
    head, first = ("<?php\n", case.source.removeprefix("<?php\n")) if case.path.endswith(".php") else ("", case.source)
    moved = parse(case.path, (head + "\n" * blank + first).encode())
    still = parse(case.path, case.source.encode())
    assert [it.key for it in moved.symbols] == [it.key for it in still.symbols]
    assert [it.text for it in moved.symbols[1:]] == [it.text for it in still.symbols[1:]]
    assert [it.start_line for it in moved.symbols[1:]] == [it.start_line + blank for it in still.symbols[1:]]


def test_files_parsed_in_other_processes_give_the_same_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        (tmp_path / f"m{number}.py").write_text(f"def f{number}():\n    return {number}\n")
    (tmp_path / "broken.py").write_bytes(b"def broken(:\n\xff\n")
    (tmp_path / "generated.py").write_text("# @generated\nx = 1\n")
    repository, connector = Repository("here", tmp_path, "acme"), Symbols()
    listing = connector.scan(repository, Known())
    alone = list(connector.read(repository, listing, list(listing.units)))
    monkeypatch.setattr("context_os.connectors.symbols._WORTH_PROCESSES", 1)
    together = list(connector.read(repository, listing, list(listing.units)))
    assert [_fixed(unit) for unit in together] == [_fixed(unit) for unit in alone]
    assert len(alone) == 42


def _fixed(unit: Unit) -> tuple[object, ...]:
    return unit.key, unit.hash, unit.notes, [(item.id, item.metadata.checksum) for item in unit.items]


def test_a_parsing_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.py").write_text("x = 1\n")
    repository, connector = Repository("here", tmp_path, "acme"), Symbols()
    listing = connector.scan(repository, Known())
    monkeypatch.setattr("context_os.connectors.symbols._WORTH_PROCESSES", 1)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(SourceError, match="parsing process died"):
        list(connector.read(repository, listing, ["one.py"]))


@pytest.mark.slow
def test_a_file_that_keeps_its_process_is_left_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"m{number}.py").write_text(f"def f{number}(): pass\n")
    (tmp_path / "m2.cs").write_bytes(b"a<;" * 330_000)
    repository, connector = Repository("here", tmp_path, "acme"), Symbols()
    listing = connector.scan(repository, Known())
    monkeypatch.setattr("context_os.connectors.symbols._WORTH_PROCESSES", 1)
    monkeypatch.setattr("context_os.connectors.symbols._LONGEST", 2.5)
    units = {unit.key: unit for unit in connector.read(repository, listing, list(listing.units))}
    assert {key: unit.hash for key, unit in units.items()} == listing.units
    assert (units["m2.cs"].items, units["m2.cs"].notes) == ((), ("skipped: not parsed within 2.5 seconds",))
    assert [len(unit.items) for key, unit in units.items() if key != "m2.cs"] == [2] * 5
