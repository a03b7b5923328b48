"""The style of a page: light and dark, from a phone's width to a desk's.

The colours of series keep 3:1 against the page and text 4.5:1, in both (tests/test_pages.py).
"""

from __future__ import annotations

NUM_SHADES = 10  # of a shaded cell; the darkest leaves text its contrast

_SHADES = "\n".join(
    f".s{n} {{ background: color-mix(in srgb, var(--c0) {n * 3.4:g}%, transparent); }}"
    for n in range(1, NUM_SHADES + 1)
)

STYLE = (
    """
:root { color-scheme: light dark;
  --paper: #ffffff; --soft: #f3f4f6; --ink: #1a1c1f; --quiet: #55595f; --line: #c6cad0;
  --link: #0b57a4; --mark: #d9efdd;
  --c0: #0b62b8; --c1: #b3430a; --c2: #1c7a3c; --c3: #8a3fae;
  --c4: #8a6a00; --c5: #b0225f; --c6: #0f7480; --c7: #555a66; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14161a; --soft: #1f2329; --ink: #e8eaed; --quiet: #a9afb8; --line: #434a54;
  --link: #8ab8ff; --mark: #1f4a2c;
  --c0: #6cb0ff; --c1: #ff9a5c; --c2: #63cf8a; --c3: #d49bf0;
  --c4: #e0bf4a; --c5: #ff8ab8; --c6: #59cbd8; --c7: #b4bac6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 78rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 1.75rem 0 0.5rem; padding-top: 0.6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
p, li { max-width: 50rem; }
p { margin: 0.5rem 0; }
.lead { font-size: 1.15rem; max-width: 62rem; margin: 0.75rem 0; }
.verdict { font-size: 1.15rem; max-width: none; margin: 0.75rem 0; padding: 0.6rem 0.9rem;
  background: var(--soft); border-left: 0.4rem solid var(--c7); border-radius: 0.25rem; }
.verdict.good { border-color: var(--c2); } .verdict.bad { border-color: var(--c1); }
.verdict strong { margin-right: 0.3rem; }
.tiles { display: grid; gap: 0.6rem; margin: 0.75rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(46%, 10.5rem), 1fr)); }
.tiles div { border: 1px solid var(--line); border-radius: 0.25rem; padding: 0.45rem 0.75rem; }
.tiles dt, .tiles dd { margin: 0; font-size: 0.84375rem; color: var(--quiet); }
.tiles .figure { font-size: 1.5rem; line-height: 1.3; color: var(--ink); font-weight: 600;
  font-variant-numeric: tabular-nums; }
.beside { display: grid; gap: 0 2.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.beside > div { min-width: 0; }
.beside > div > section > h2:first-child, .beside h2 { border-top: 0; margin-top: 0.5rem; }
.beside figure { margin-bottom: 0.75rem; }
a { color: var(--link); }
.skip { position: absolute; left: -60rem; }
.skip:focus { left: 0.5rem; top: 0.5rem; background: var(--paper); padding: 0.5rem; z-index: 2; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible, pre:focus-visible {
  outline: 3px solid var(--link); outline-offset: 2px; }
nav { font-size: 0.875rem; }
nav ul { list-style: none; padding: 0; margin: 0.5rem 0; display: flex; flex-wrap: wrap;
  gap: 0 1rem; }
nav li { padding: 0.1rem 0; }
@media (max-width: 40rem) { nav ul { flex-wrap: nowrap; overflow-x: auto; }
  nav li { white-space: nowrap; padding-bottom: 0.4rem; } }
.scroll { overflow-x: auto; margin: 0.75rem 0; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.84375rem; }
caption { text-align: left; color: var(--quiet); padding: 0.25rem 0; caption-side: top; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.45rem; text-align: left;
  vertical-align: top; max-width: 22rem; overflow-wrap: break-word; unicode-bidi: isolate; }
caption span { display: inline-block; position: sticky; left: 0;
  max-width: min(60rem, calc(100vw - 3rem)); }
thead th { background: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 7rem; position: sticky; left: 0;
  background: var(--paper); }
tbody th.number { min-width: 3rem; }
td.long { min-width: 12rem; }
tbody .number { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--soft); padding: 0.75rem; overflow-x: auto; font-size: 0.875rem;
  white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 0.25rem;
  font-family: ui-monospace, Consolas, "DejaVu Sans Mono", monospace; }
code { font-family: inherit; }
mark { background: var(--mark); color: var(--ink); text-decoration: underline; }
.figures { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); }
figure { margin: 1rem 0 2rem; min-width: 0; }
figcaption { max-width: 46rem; margin-bottom: 0.5rem; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; color: var(--link); }
.chart { display: block; width: 100%; max-width: 36rem; height: auto; }
.chart text { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  fill: var(--ink); }
.chart .small { font-size: 11px; fill: var(--quiet); }
.grid { stroke: var(--line); stroke-width: 0.6; }
.axis { stroke: var(--quiet); stroke-width: 1; }
.level { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 4 3; }
.level.l1 { stroke: var(--quiet); stroke-dasharray: 1 3; }
.begin { stroke: var(--quiet); stroke-width: 0.8; stroke-dasharray: 2 3; }
.chart a:focus-visible .marker { stroke: var(--ink); stroke-width: 3; }
.chart a { cursor: pointer; }
.bar { stroke-width: 1.5; opacity: 0.8; }
.way { fill: none; stroke-width: 1.5; opacity: 0.75; }
.marker { stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.c0 { stroke: var(--c0); fill: var(--c0); } .c1 { stroke: var(--c1); fill: var(--c1); }
.c2 { stroke: var(--c2); fill: var(--c2); } .c3 { stroke: var(--c3); fill: var(--c3); }
.c4 { stroke: var(--c4); fill: var(--c4); } .c5 { stroke: var(--c5); fill: var(--c5); }
.c6 { stroke: var(--c6); fill: var(--c6); } .c7 { stroke: var(--c7); fill: var(--c7); }
.marker.hollow { fill: var(--paper); } path.way { fill: none; }
@media print { .scroll, pre { overflow: visible; } }
"""
    + _SHADES
    + "\n"
)
