"use strict";
for (const viewer of document.querySelectorAll(".viewer")) {
  const image = viewer.closest(".picture").querySelector("figure img");
  const panels = JSON.parse(viewer.dataset.panels).filter((p) => !p.full_fov);
  for (const view of ["axial", "coronal", "sagittal"]) {
    const own = panels.filter((p) => p.view === view);
    if (own.length < 2) continue;
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const slider = document.createElement("input");
    const caption = document.createElement("figcaption");
    slider.type = "range";
    slider.min = 0;
    slider.max = own.length - 1;
    slider.value = own.length >> 1;
    slider.setAttribute("aria-label", view + " slice");
    const draw = () => {
      const panel = own[slider.value], [x0, y0, x1, y1] = panel.box;
      canvas.width = 2 * (x1 - x0);
      canvas.height = 2 * (y1 - y0);
      canvas.getContext("2d").drawImage(image, x0, y0, x1 - x0, y1 - y0, 0, 0, canvas.width, canvas.height);
      caption.textContent = view + " " + panel.position_mm.toFixed(1) + " mm";
    };
    slider.addEventListener("input", draw);
    figure.append(canvas, slider, caption);
    viewer.append(figure);
    if (image.complete) draw(); else image.addEventListener("load", draw);
  }
}
