// Puts live Vega in the place of each still picture, in the reader's theme, and follows a change of theme.
const specs = JSON.parse(document.getElementById("specs").textContent);
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

async function draw(name) {
  const place = document.querySelector(`[data-figure="${name}"]`);
  const config = dark.matches ? themes.dark : themes.light;
  await vegaEmbed(place.querySelector(".live"), specs[name], {
    config, actions: false, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" },
  });
  place.classList.add("drawn");
}

const drawAll = () => Object.keys(specs).reduce((before, name) => before.then(() => draw(name)), Promise.resolve());
dark.addEventListener("change", drawAll);
drawAll();
