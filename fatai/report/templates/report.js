(() => {
  const wanted = matchMedia("(prefers-color-scheme: dark)");
  const rules = [...document.styleSheets].flatMap(sheet => [...sheet.cssRules])
    .filter(rule => rule.media && rule.media.mediaText.includes("prefers-color-scheme: dark"));
  let dark = wanted.matches;
  document.getElementById("theme").addEventListener("click", () => {
    dark = !dark;
    for (const rule of rules) rule.media.mediaText = dark ? "all" : "not all";
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  });
  // One sound at a time.
  document.addEventListener("play", event => {
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
  }, true);
})();
