"""The frame and the style of the pages: `report.html`, and what `jaxrec compare --html` writes."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lead}
</header>
<main>
{sections}
</main>
</body>
</html>
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c1f24; --soft: #5d6570; --paper: #ffffff; --card: #f5f6f8; --line: #dcdfe4;
  --ahead: #1d7a4a; --behind: #b3392f; --undecided: #8a6414; --tint: #e8f0fb;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e8eb; --soft: #9aa3ae; --paper: #14171b; --card: #1d2127; --line: #333942;
    --ahead: #5cc48d; --behind: #ef7d72; --undecided: #d9b055; --tint: #1c2a3d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.5rem; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
h4 {
  font-size: .75rem; margin: .75rem 0 .25rem; color: var(--soft);
  text-transform: uppercase; letter-spacing: .04em;
}
small, .note { color: var(--soft); font-size: .8rem; }
.verdict {
  font-size: 1.1rem; margin: 0; padding: .75rem 1rem; background: var(--card);
  border-left: 4px solid var(--undecided); border-radius: 0 6px 6px 0;
}
.verdict.ahead { border-color: var(--ahead); }
.verdict.behind { border-color: var(--behind); }
.wide { overflow-x: auto; margin: .25rem 0 1rem; }
figure.table { margin: .75rem 0 0; }
figcaption { color: var(--soft); font-size: .85rem; padding: .25rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .6rem; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child {
  text-align: left; white-space: normal; min-width: 8rem; overflow-wrap: normal;
  position: sticky; left: 0; background: var(--paper);
}
thead th { border-bottom: 1px solid var(--line); font-size: .8rem; color: var(--soft); }
tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
td small { display: block; font-size: .7rem; }
.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: break-word; max-width: 22rem; }
td.text:nth-child(n+2) { min-width: 7rem; }
ul + .wide, ul + .picture { margin-top: .75rem; }
.plain th:first-child { min-width: 0; position: static; }
tr.generator > *, tr.generator > th:first-child { background: var(--tint); }
tr.soft > * { color: var(--soft); font-size: .8rem; font-weight: 400; }
tr.head > * { border-top: 2px solid var(--soft); color: var(--soft); font-size: .85rem; }
tr i { font-style: normal; color: var(--undecided); }
tr.ahead i { color: var(--ahead); }
tr.behind i { color: var(--behind); }
.warning {
  margin: 1rem 0 0; padding: .75rem 1rem; background: var(--card); border-radius: 0 6px 6px 0;
  border-left: 4px solid var(--behind);
}
.warning ul { margin-top: .5rem; }
details { margin: 0 0 1rem; }
summary { cursor: pointer; color: var(--soft); padding: .25rem 0; }
details[open] > summary { margin-bottom: .5rem; }
ul, ol { margin: 0; padding-left: 1.3rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figure.picture { max-width: 42rem; margin: 0 0 .75rem; }
.legend {
  list-style: none; padding: 0; margin: .25rem 0 0; display: flex; flex-wrap: wrap;
  gap: .1rem 1rem; font-size: .8rem; color: var(--soft);
}
s {
  display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .45em;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;
}
.figures, .users { display: grid; gap: 1.25rem; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.users { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
article { background: var(--card); border-radius: 8px; padding: 1rem; font-size: .9rem; }
article p { margin: .75rem 0 0; }
article ol:not(.list) { list-style: none; padding: 0; }
article ol.list { padding-left: 1.7rem; }
li.hit { color: var(--ahead); font-weight: 600; }
li.hit::after { content: " \\2713"; }
dl {
  display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 1fr);
  gap: .2rem 1.25rem; margin: .75rem 0;
}
dt { color: var(--soft); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
dd dl { margin: 0; }
@media (max-width: 34rem) {
  body { padding: 1rem .75rem 3rem; }
  .verdict { font-size: 1rem; }
  th, td { padding: .35rem .45rem; }
  th:first-child { min-width: 7.5rem; max-width: 10rem; }
  dl { grid-template-columns: 1fr; }
  dd { margin: 0 0 .4rem; }
  dd.nested { padding-left: .75rem; border-left: 2px solid var(--line); }
}
@media print {
  :root {
    --ink: #000; --soft: #444; --paper: #fff; --card: #f5f6f8; --line: #bbb;
    --ahead: #1d7a4a; --behind: #b3392f; --undecided: #8a6414; --tint: #e8f0fb;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  td small { font-size: 5pt; }
  th, td { padding: .2rem .25rem; }
  thead th { font-size: 7pt; }
  th:first-child { min-width: 5rem; }
  article, figure, tr, .verdict { break-inside: avoid; }
  h2, h3, figcaption { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
