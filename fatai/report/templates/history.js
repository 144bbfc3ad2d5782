"use strict";
// Follow the run: a page in a file is loaded again, one of a server is fetched, so that it stays when the server ends.
(() => {
  const REFRESH_S = 5, LATE_S = 300, isServed = location.protocol !== "file:";
  const element = (id) => document.getElementById(id);
  const isFinished = () => document.body.dataset.finished !== undefined;
  const show = () => {
    if (isFinished()) return;
    const age = Math.max(0, Math.round(Date.now() / 1000 - Number(document.body.dataset.updated)));
    element("age").textContent = `, ${age < 120 ? `${age} s` : `${Math.round(age / 60)} min`} ago`;
    element("late").hidden = age < LATE_S || !element("gone").hidden;
  };
  const replace = (page) => {
    document.title = page.title;
    for (const key of ["updated", "finished"]) delete document.body.dataset[key];
    Object.assign(document.body.dataset, page.body.dataset);
    document.querySelector("main").replaceWith(page.querySelector("main"));
    if (isFinished()) element("follow").remove();
    show();
  };
  const answer = async (address, options) => {
    try {
      const response = await fetch(address, {cache: "no-store", ...options});
      element("gone").hidden = true;
      return response;
    } catch {
      element("gone").hidden = false;
      return null;
    }
  };
  const refresh = async () => {
    if (isFinished() || !element("refresh").checked) return;
    if (!isServed) return location.reload();
    const response = await answer(location.href);
    if (!response?.ok) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (page.querySelector("main") && page.body.dataset.updated !== document.body.dataset.updated) replace(page);
  };
  show();
  if (isFinished() && !isServed) return;
  setInterval(show, 1000);
  setInterval(refresh, 1000 * REFRESH_S);
  if (!isServed) return;
  // A link leads to a page only while there is a server.
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (await answer(link.href, {method: "HEAD"})) location.assign(link.href);
  });
})();
