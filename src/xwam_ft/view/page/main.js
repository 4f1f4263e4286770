// The page: what is shown, a tab each; the place within stands in the address, so that it can be sent and reloaded.

import {SetPage} from "./episodes.js";
import {bundlePage, resultPage, runPage} from "./runs.js";
import {ask, el} from "./tools.js";

const main = document.getElementById("main"), tabs = document.getElementById("tabs");

function pagesOf(view, hash) {
  const pages = [];
  const episodes = view.sets.length === 1 ? "Episodes" : null;
  if (view.run) pages.push(["run", "Run", () => runPage(view.run)]);
  if (view.bundle) pages.push(["bundle", "Bundle", () => bundlePage(view.bundle, view)]);
  view.results.forEach((found, at) => pages.push([`results-${at}`, found.name, () => resultPage(found)]));
  view.sets.forEach(set => pages.push([set.token, episodes || set.name, () => new SetPage(view, set, hash)]));
  return pages;
}

async function begin() {
  const view = await ask("api/view");
  const hash = new URLSearchParams(location.hash.slice(1));
  document.title = `${view.target} · xwam-ft`;
  document.getElementById("target").textContent = view.target;
  document.getElementById("notes").append(...view.notes.map(note => el("p", {}, note)));
  const pages = pagesOf(view, hash);
  let shown = null;
  const open = (name, make) => {
    if (shown) shown.close();
    hash.set("tab", name);
    history.replaceState(null, "", `#${hash}`);
    shown = make();
    main.replaceChildren(shown.element);
    for (const tab of tabs.children) tab.setAttribute("aria-selected", String(tab.dataset.tab === name));
  };
  if (!pages.length) {
    main.replaceChildren(el("p", {class: "empty"}, "There is nothing to show yet."));
    return;
  }
  if (pages.length > 1) tabs.append(...pages.map(([name, title, make]) => el("button", {role: "tab", "data-tab": name, onclick: () => open(name, make)}, title)));
  const [name, , make] = pages.find(([known]) => known === hash.get("tab")) || pages[0];
  open(name, make);
}

begin().catch(error => main.replaceChildren(el("p", {class: "empty error"}, error.message)));
