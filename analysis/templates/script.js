"use strict";
const all = (query, within = document) => [...within.querySelectorAll(query)];
const one = (query) => document.querySelector(query);

// sort a table by a column: the largest first, then the smallest; words and blanks always below the numbers
const numeric = (text) => parseFloat(text.replace(/,/g, "").replace(/−/g, "-").replace(/^[<>[ ]+/, ""));
const order = (a, b, sign) => {
  const x = numeric(a), y = numeric(b);
  return isNaN(x) && isNaN(y) ? sign * a.localeCompare(b) : isNaN(x) ? 1 : isNaN(y) ? -1 : sign * (x - y);
};
const sort = (th) => {
  const body = th.closest("table").tBodies[0], value = (row) => row.cells[th.cellIndex].textContent.trim();
  const down = th.getAttribute("aria-sort") !== "descending";
  for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  body.append(...[...body.rows].sort((a, b) => order(value(a), value(b), down ? -1 : 1)));
};
for (const button of all("thead button")) button.onclick = () => sort(button.closest("th"));

// enlarge a figure
const zoom = one("dialog"), large = new Image();
zoom.append(large);
for (const button of all(".zoom")) {
  button.onclick = () => {
    const img = button.firstElementChild;
    [large.src, large.alt] = [img.src, img.alt];
    large.style.width = `${Math.max(img.naturalWidth, 2 * img.offsetWidth)}px`;
    zoom.showModal();
  };
}
zoom.onclick = () => zoom.close();

// unfold a section that is asked for
const unfold = (section) => all(":scope > .whole", section).forEach((whole) => { whole.open = true; });
const follow = () => unfold(document.getElementById(location.hash.slice(1)) || document.body);
window.onhashchange = follow;
follow();

// show one task, one method, or both
const task = one("#task"), method = one("#method");
const filter = () => {
  const place = task ? task.value : "", kind = method ? method.value : "";
  document.body.classList.toggle("filtered", Boolean(place || kind));
  if (place) unfold(one(`#table-${place}`));
  for (const each of all("[data-place], [data-kinds]")) {
    const {place: at, kinds} = each.dataset;
    const elsewhere = place && at && at !== place, other = kind && kinds && !kinds.split(" ").includes(kind);
    each.classList.toggle("off", Boolean(elsewhere || other));
  }
};
for (const select of [task, method]) if (select) select.onchange = filter;

// the difference of two rank maps
const difference = one("#difference");
if (difference) {
  difference.onchange = () => {
    for (const each of all("[data-difference]")) each.hidden = each.dataset.difference !== difference.value;
  };
}

// the settings in which two configurations differ
const {names, settings, first} = JSON.parse(one("#configurations").textContent);
const picks = [one("#first"), one("#second")];
const compare = () => {
  const [a, b] = picks.map((pick) => Number(pick.value));
  const cell = (text) => Object.assign(document.createElement("td"), {textContent: text});
  const rows = Object.entries(settings).filter(([, values]) => values[a] !== values[b]).map(([name, values]) => {
    const row = document.createElement("tr");
    row.append(...[name, values[a], values[b]].map((value) => cell(value ?? "–")));
    return row;
  });
  const same = document.createElement("tr");
  same.append(cell("no setting differs"), cell(""), cell(""));
  one("#differing tbody").replaceChildren(...(rows.length ? rows : [same]));
};
picks.forEach((pick, i) => {
  pick.append(...names.map((name, value) => new Option(name, value, false, value === first[i])));
  pick.onchange = compare;
});
compare();
