"use strict";
(() => {
  const { plots, overTime } = JSON.parse(document.getElementById("figures").textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  };
  const divs = [...document.querySelectorAll(".plot")];
  for (const div of divs) {
    const { data, layout } = plots[div.dataset.figure];
    Plotly.newPlot(div, data, structuredClone(layout), config);
  }

  // The plots of a printed page are as wide as paper.
  addEventListener("beforeprint", () => {
    for (const div of divs) Plotly.relayout(div, { width: div.closest(".boxes") ? 330 : 670 });
  });
  addEventListener("afterprint", () => {
    for (const div of divs) Plotly.relayout(div, { width: null, autosize: true });
  });

  // One track at a time over time.
  const track = document.getElementById("track");
  const timePlot = document.querySelector('[data-figure="over-time"]');
  const showTrack = () => {
    document.getElementById("track-name").textContent = track.selectedOptions[0].textContent;
    Plotly.react(timePlot, overTime[track.value], structuredClone(plots["over-time"].layout), config);
  };
  track.addEventListener("change", showTrack);
  showTrack();

  // The table sorts; what has no value stays at the end.
  const table = document.getElementById("tracks-table");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const byText = (a, b) => a.localeCompare(b, undefined, { numeric: true });
  const byNumber = (a, b) => (Number(a) > Number(b)) - (Number(a) < Number(b));
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const texts = column < 2;
      const before = head.getAttribute("aria-sort");
      // Figures begin with the highest.
      const order = before === "none" ? (texts ? "ascending" : "descending") : before === "ascending" ? "descending" : "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const value = (row) => row.cells[column].dataset.value;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        return sign * (texts ? byText : byNumber)(left, right);
      });
      body.append(...rows);
    });
  });
  const filter = document.getElementById("target-filter");
  filter.addEventListener("change", () => {
    for (const row of body.rows) row.hidden = filter.value !== "" && row.dataset.target !== filter.value;
  });
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-track]");
    if (!button) return;
    track.value = button.dataset.track;
    showTrack();
    document.getElementById("time").scrollIntoView();
  });

  // One excerpt sounds at a time; a line on its picture shows where it is.
  const clips = [...document.querySelectorAll(".clip")].map((clip) => ({
    audio: clip.querySelector("audio"),
    picture: clip.querySelector(".picture"),
    cursor: clip.querySelector(".cursor"),
  }));
  for (const { audio, picture, cursor } of clips) {
    const move = () => {
      cursor.hidden = false;
      cursor.style.left = `${(100 * audio.currentTime) / audio.duration}%`;
      if (!audio.paused) requestAnimationFrame(move);
    };
    audio.addEventListener("play", () => {
      for (const other of clips) if (other.audio !== audio) other.audio.pause();
      move();
    });
    audio.addEventListener("seeked", move);
    picture.addEventListener("click", (event) => {
      const { left, width } = picture.getBoundingClientRect();
      audio.currentTime = (audio.duration * (event.clientX - left)) / width;
      audio.play();
    });
  }
})();
