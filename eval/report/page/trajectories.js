// One image walked to noise and back, with the network's running guess beside it.

(() => {
  const data = DATA.trajectories;
  if (data.missing) {
    const command = "python -m scripts.report FOLDER --runs runs/" + DATA.dataset;
    $("trajectories-note").textContent = "";
    $("trajectories-body").className = "panel missing";
    $("trajectories-body").replaceChildren(
      el("p", {}, `Not in this report. ${data.missing}`),
      el(
        "p",
        {},
        "They are computed from the trained networks: train them (or point at them) and write the report again, for example ",
        el("code", {}, command),
        ".",
      ),
    );
    return;
  }
  const notes = data.notes.length ? ` Note: ${data.notes.join("; ")}.` : "";
  const labelled = data.labels ? ", with the label of the image" : "";
  $("trajectories-note").textContent =
    `A training image gains noise until nothing of it is left; from that same noise the method samples${labelled}. ` +
    `It is not meant to return to the image it came from.${notes}`;
  const side = data.side,
    slider = $("walk");
  const shown = [...new Set(data.films.map((film) => film.series))];
  let series = shown[0],
    steps = null,
    image = 0,
    timer = null,
    drawing = 0;

  const filmsOf = (index) => data.films.filter((film) => film.series === index).sort((a, b) => a.steps - b.steps);
  const current = () => filmsOf(series).find((film) => film.steps === steps);
  const turn = (film) => film.forward_times.length - 1; // the slider's place of pure noise

  function chips(box, name, items, chosen, pick) {
    box.replaceChildren(
      ...items.map(({ value, parts }) => {
        const radio = el("input", { type: "radio", name, value, checked: value === chosen });
        radio.addEventListener("change", () => pick(value));
        return el("label", {}, radio, ...parts);
      }),
    );
  }

  function fillSteps() {
    const films = filmsOf(series),
      before = steps;
    steps = films.some((film) => film.steps === before) ? before : films[films.length - 1].steps;
    chips(
      $("walk-steps"),
      "walk-steps",
      films.map((film) => ({ value: film.steps, parts: [plural(film.steps, "step")] })),
      steps,
      (value) => {
        steps = value;
        fit();
      },
    );
  }

  /** Keeps the place of the walk when its length changes: on the way out the same frame, on the way back the same share. */
  let place = { out: true, share: 0 };
  function fit() {
    const film = current(),
      out = turn(film),
      back = film.times.length - 1;
    slider.max = out + back;
    slider.value = Math.round(place.out ? place.share * out : out + place.share * back);
    $("walk-noise").style.left = `${(100 * out) / (out + back)}%`;
    $("walk-noise").hidden = out / (out + back) > 0.8; // it would run into the label of the end
    draw();
  }

  async function draw() {
    const mine = ++drawing,
      film = current(),
      at = Number(slider.value),
      out = turn(film),
      back = film.times.length - 1;
    place = at <= out ? { out: true, share: at / out } : { out: false, share: (at - out) / back };
    // The turning point belongs to the way back where there is a step to make.
    const forward = at < out,
      frame = forward ? at : at - out;
    const keys = forward ? [film.forward, film.forward_guess] : [film.back, film.back_guess];
    const sheets = await Promise.all(
      [...keys, film.forward, film.forward_guess, film.back, film.back_guess].map((key) => picture(data.sheets[key])),
    );
    if (mine !== drawing) return;
    [
      ["state", 0],
      ["guess", 1],
    ].forEach(([id, which]) => {
      const canvas = $(id),
        scale = Math.max(1, Math.ceil(320 / side));
      canvas.width = canvas.height = side * scale;
      copy(canvas.getContext("2d"), sheets[which], frame * side, image * side, side, side, 0, 0, scale);
    });
    const t = forward ? film.forward_times[at] : film.times[frame];
    $("walk-now").textContent = `${forward ? "out" : "back"}, t = ${t.toFixed(3)}`;
    slider.setAttribute("aria-valuetext", $("walk-now").textContent);
    const { label, name } = DATA.series[series];
    let words;
    if (at === 0) words = "The image itself: t = 0, no noise yet.";
    else if (forward)
      words = `Going out along the ${film.path} path: ${Math.round(100 * t)} % of the way to noise. ` +
        `The picture on the right is what the network of the ${label} makes of it in one evaluation.`;
    else if (frame === 0)
      words = `Pure noise, where ${name} begins: ${plural(film.steps, "step")} to go. The guess is its first.`;
    else if (frame === back) words = `Done: ${plural(film.steps, "step")}, ${film.nfe} network evaluations.`;
    else
      words = `Coming back: ${film.taken[frame]} of ${plural(film.steps, "step")} taken. ` +
        "The guess is what the next step is based on.";
    $("walk-words").textContent = words;
    $("state").setAttribute("aria-label", `state at t = ${t.toFixed(3)}`);
    $("guess").setAttribute("aria-label", `guess of the image at t = ${t.toFixed(3)}`);
    drawFilm(film, at, out, back, sheets.slice(2));
  }

  /** The way out above, the way back below; the frame shown is marked. */
  function drawFilm(film, at, out, back, [forward, forwardGuess, backward, backwardGuess]) {
    const canvas = $("film"),
      columns = Math.max(out, back) + 1,
      gap = Math.max(1, Math.round(side / 8)),
      cell = side + gap;
    const scale = Math.max(1, Math.ceil(1400 / (columns * cell)));
    const tall = 2 * cell + 2 * gap; // of one way
    canvas.width = (columns * cell + gap) * scale;
    canvas.height = (2 * tall - gap) * scale;
    const context = canvas.getContext("2d");
    context.fillStyle = css("--panel");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = css("--accent");
    context.fillRect(
      (at < out ? at : at - out) * cell * scale,
      (at < out ? 0 : tall) * scale,
      (side + 2 * gap) * scale,
      (2 * cell + gap) * scale,
    );
    [
      [forward, forwardGuess],
      [backward, backwardGuess],
    ].forEach((sheets, way) => {
      for (let k = 0; k <= (way ? back : out); k++) {
        sheets.forEach((sheet, row) => {
          copy(
            context,
            sheet,
            k * side,
            image * side,
            side,
            side,
            (k * cell + gap) * scale,
            (way * tall + row * cell + gap) * scale,
            scale,
          );
        });
      }
    });
    canvas.setAttribute(
      "aria-label",
      `film of ${out + 1} states and guesses on the way out and ${back + 1} on the way back; number ${at + 1} is marked`,
    );
    canvas.onclick = (event) => {
      const column = Math.floor((event.offsetX / canvas.clientWidth) * columns);
      const isBack = event.offsetY > canvas.clientHeight / 2;
      slider.value = isBack ? out + Math.min(column, back) : Math.min(column, out);
      draw();
    };
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    $("play").textContent = "Play";
    $("play").setAttribute("aria-pressed", "false");
  }
  $("play").addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) === Number(slider.max)) slider.value = 0;
    $("play").textContent = "Stop";
    $("play").setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      draw();
      if (Number(slider.value) === Number(slider.max)) stop();
    }, 160);
  });

  chips(
    $("walk-methods"),
    "walk-method",
    shown.map((index) => ({ value: index, parts: [swatch(DATA.series[index]), DATA.series[index].name] })),
    series,
    (value) => {
      series = value;
      fillSteps();
      fit();
    },
  );
  const thumbnails = Array.from({ length: data.images }, (_, k) => {
    const canvas = el("canvas", { width: side, height: side, role: "img", "aria-label": `image ${k + 1}` });
    picture(data.sheets[data.films[0].forward]).then((sheet) =>
      copy(canvas.getContext("2d"), sheet, 0, k * side, side, side, 0, 0, 1),
    );
    return { value: k, parts: data.labels ? [canvas, `class ${data.labels[k]}`] : [canvas] };
  });
  chips($("walk-images"), "walk-image", thumbnails, image, (value) => {
    image = value;
    draw();
  });
  slider.addEventListener("input", () => {
    stop();
    draw();
  });
  themed.push(draw);
  fillSteps();
  fit();
  slider.value = 8;
  draw();
})();
