"use strict";
// Search over the rows that are in the page. Without this script all of them are shown.
const box = document.getElementById("search");
const kind = document.getElementById("kind");
const said = document.getElementById("found");
const rows = [...document.querySelectorAll("details.row")];
const texts = rows.map(() => null);
const textOf = (i) => (texts[i] ??= rows[i].textContent.toLowerCase());

function mark(words) {
  if (!window.CSS?.highlights) return;
  CSS.highlights.delete("found");
  const ranges = [];
  for (const row of words.length ? rows.filter((r) => !r.hidden) : []) {
    const walker = document.createTreeWalker(row, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()) && ranges.length < 5000; ) {
      const text = node.data.toLowerCase();
      if (text.length !== node.data.length) continue; // a letter became two, and places are not the same
      for (const word of words) {
        for (let at = text.indexOf(word); at >= 0 && ranges.length < 5000; at = text.indexOf(word, at + word.length)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + word.length);
          ranges.push(range);
        }
      }
    }
  }
  if (ranges.length) CSS.highlights.set("found", new Highlight(...ranges));
}

function search() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  rows.forEach((row, i) => {
    const fits = (!kind.value || row.dataset.tags.split("|").includes(kind.value)) && words.every((w) => textOf(i).includes(w));
    row.hidden = !fits;
    shown += fits;
  });
  said.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  mark(words);
}

function openTarget() {
  const row = document.getElementById(location.hash.slice(1));
  if (!rows.includes(row)) return;
  if (row.hidden) {
    box.value = kind.value = "";
    search();
  }
  row.open = true;
  row.scrollIntoView();
}

let waiting = 0;
box.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(search, 120);
});
kind.addEventListener("change", search);
document.getElementById("open").addEventListener("click", () => {
  const there = rows.filter((row) => !row.hidden);
  const open = there.some((row) => !row.open);
  there.forEach((row) => (row.open = open));
});
window.addEventListener("hashchange", openTarget);
document.querySelector(".find").hidden = false;
search(); // a browser may have kept what was typed
openTarget();
