"use strict";
// Reload the page while the run trains, and show how old it is.
(() => {
  const {updated, finished} = document.body.dataset, REFRESH_S = 5, LATE_S = 300;
  if (finished !== undefined) return;
  const show = () => {
    const age = Math.max(0, Math.round(Date.now() / 1000 - Number(updated)));
    document.getElementById("age").textContent = `, ${age < 120 ? `${age} s` : `${Math.round(age / 60)} min`} ago`;
    document.getElementById("late").hidden = age < LATE_S;
  };
  show();
  setInterval(show, 1000);
  setInterval(() => { if (document.getElementById("refresh").checked) location.reload(); }, 1000 * REFRESH_S);
})();
