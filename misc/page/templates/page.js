"use strict";
// Layers by key and click, order by measure, filter by class. All values come from data attributes.
for (const gallery of document.querySelectorAll(".gallery")) {
  const cards = [...gallery.querySelectorAll(".card")];
  const list = gallery.querySelector(".cards");
  const radios = [...gallery.querySelectorAll(".layers input")];
  const titles = radios.map((radio) => radio.parentElement.querySelector("span").lastChild.textContent.trim());
  const sort = gallery.querySelector(".sort");
  const filter = gallery.querySelector(".filter");
  const status = gallery.querySelector(".status");
  const shown = new Map();

  const overlays = (card) => [...card.querySelectorAll(".over")];
  const has = (card, layer) => layer === 0 || overlays(card).some((image) => Number(image.dataset.layer) === layer);

  function show(card, layer) {
    let gray = false;
    for (const image of overlays(card)) {
      image.hidden = Number(image.dataset.layer) !== layer;
      gray ||= !image.hidden && "gray" in image.dataset;
    }
    const shot = card.querySelector(".shot");
    const title = has(card, layer) ? titles[layer] : `photo (no ${titles[layer]})`;
    shot.classList.toggle("gray", gray);
    shot.setAttribute("aria-label", `${card.dataset.name}: ${title}; press for the next layer`);
    card.querySelector(".badge").textContent = title;
    shown.set(card, layer);
  }

  function showNext(card) {
    let layer = shown.get(card);
    do layer = (layer + 1) % titles.length; while (!has(card, layer));
    show(card, layer);
  }

  function showAll(layer) {
    radios[layer].checked = true;
    cards.forEach((card) => show(card, layer));
    tell();
  }

  const visible = () => [...list.children].filter((card) => !card.hidden);

  function tell() {
    const layer = titles[radios.findIndex((radio) => radio.checked)];
    status.textContent = `${visible().length} of ${cards.length} pictures, ${layer}`;
  }

  function byMeasure(index, rising) {
    const share = (card) => {
      const text = card.dataset.measures.split(" ")[index];
      return text ? (rising ? 1 : -1) * Number(text) : Infinity;
    };
    return (a, b) => (share(a) < share(b) ? -1 : Number(share(a) > share(b)));
  }

  function arrange() {
    const option = sort.selectedOptions[0];
    const order = option.value === "name"
      ? (a, b) => a.dataset.name.localeCompare(b.dataset.name, "en", { numeric: true })
      : byMeasure(Number(option.value), option.dataset.rising === "1");
    list.append(...[...cards].sort(order));
  }

  function select() {
    for (const card of cards) {
      const classes = card.dataset.classes.split(" ").filter(Boolean);
      card.hidden = filter.value === "none" ? classes.length > 0 : filter.value !== "" && !classes.includes(filter.value);
    }
    tell();
  }

  function move(from, step) {
    const rest = visible();
    rest[rest.indexOf(from) + step]?.querySelector(".shot").focus();
  }

  list.addEventListener("click", (event) => {
    const shot = event.target.closest(".shot");
    if (shot) showNext(shot.closest(".card"));
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const card = event.target.closest(".card");
    if (step && card) move(card, step);
  });
  document.addEventListener("keydown", (event) => {
    const layer = Number(event.key) - 1;
    if (event.ctrlKey || event.altKey || event.metaKey || !(layer in radios)) return;
    event.preventDefault(); // a menu that has the focus would look for an option of that name
    showAll(layer);
  });
  radios.forEach((radio, layer) => radio.addEventListener("change", () => showAll(layer)));
  sort.addEventListener("change", arrange);
  filter.addEventListener("change", select);

  // A browser keeps what was chosen when a page is loaded again.
  arrange();
  select();
  showAll(Math.max(0, radios.findIndex((radio) => radio.checked)));
}
