(() => {
  if (window.fkTree) return;
  window.fkTree = true;
  const states = new WeakMap();

  /* Looked up anew each time: a page may change a tree in place while its run goes on. */
  function partsOf(tree) {
    const nodes = [...tree.querySelectorAll(".fk-node")].map((element, index) => ({
      element,
      index,
      column: Number(element.dataset.c),
      parent: element.dataset.p === undefined ? -1 : Number(element.dataset.p),
      reward: { inf: Infinity, "-inf": -Infinity, nan: NaN }[element.dataset.r] ?? Number(element.dataset.r),
    }));
    const columns = [...tree.querySelectorAll(".fk-col")];
    const state = states.get(tree) ?? {};
    states.set(tree, state);
    if (state.columns !== columns.length) Object.assign(state, { columns: columns.length, at: columns.length - 1 });
    return {
      nodes,
      columns,
      state,
      runs: columns.map((column) => Number(column.dataset.run)),
      edges: new Map([...tree.querySelectorAll(".fk-edge")].map((edge) => [Number(edge.dataset.n), edge])),
      strip: [...tree.querySelectorAll(".fk-strip")],
      points: [...tree.querySelectorAll(".fk-point")],
    };
  }

  const better = (a, b) => (b.reward > a.reward || (Number.isNaN(a.reward) && !Number.isNaN(b.reward)) ? b : a);

  function lineages(nodes, leaves) {
    const found = new Set();
    for (let node of leaves) {
      for (; node && !found.has(node); node = nodes[node.parent]) found.add(node);
    }
    return found;
  }

  /* The tree as it was when the event was over. */
  function show(tree, at) {
    const parts = partsOf(tree);
    const { nodes, columns, runs } = parts;
    const last = columns.length - 1;
    parts.state.at = at;
    const present = nodes.filter((node) => node.column === at);
    const leader = at === last ? nodes[Number(tree.dataset.winner)] : present.reduce(better);
    const ended = nodes.filter((node) => runs[node.column] < runs[at] && runs[node.column + 1] !== runs[node.column]);
    const lit = lineages(nodes, [leader]);
    const alive = lineages(nodes, [...present, ...ended]);
    for (const node of nodes) {
      for (const element of [node.element, parts.edges.get(node.index)]) {
        if (!element) continue;
        element.classList.toggle("fk-winner", lit.has(node));
        element.classList.toggle("fk-alive", !lit.has(node) && alive.has(node));
        element.classList.toggle("fk-pruned", !lit.has(node) && !alive.has(node) && node.column <= at);
        element.classList.toggle("fk-later", node.column > at);
      }
    }
    for (const element of parts.strip) element.classList.toggle("fk-later", !lit.has(nodes[Number(element.dataset.n)]) || nodes[Number(element.dataset.n)].column > at);
    for (const element of [...columns, ...parts.points]) element.classList.toggle("fk-later", Number(element.dataset.c) > at);
    const now = tree.querySelector(".fk-now");
    const { x, w, told } = columns[at].dataset;
    now.setAttribute("x", x);
    now.setAttribute("width", w);
    const slider = tree.querySelector(".fk-slider");
    if (slider) {
      slider.value = at;
      slider.setAttribute("aria-valuetext", told);
      tree.querySelector(".fk-event").textContent = told;
    }
    const scroll = tree.querySelector(".fk-scroll");
    const left = Number(x) + Number(w) - scroll.clientWidth + 20;
    if (scroll.scrollLeft < left || scroll.scrollLeft > Number(x)) scroll.scrollLeft = Math.max(0, left);
    choose(tree, leader, false);
  }

  /* Say everything about a node. */
  function choose(tree, node, mark = true) {
    const { nodes } = partsOf(tree);
    const picture = node.element.querySelector("image")?.getAttribute("href") ?? node.element.dataset.src;
    const image = tree.querySelector(".fk-detail img");
    image.hidden = !picture;
    if (picture) image.src = picture;
    const told = tree.querySelector(".fk-told");
    const lines = node.element.querySelector("title").textContent.split("; ");
    told.replaceChildren(...lines.map((line, index) => {
      const element = document.createElement(index === 1 ? "b" : "span");
      element.textContent = line + (index < lines.length - 1 ? " " : "");
      return element;
    }));
    for (const other of nodes) {
      const same = other.element === node.element;
      other.element.setAttribute("tabindex", same ? 0 : -1);
      other.element.classList.toggle("fk-chosen", mark && same);
    }
  }

  const treeOf = (event) => (event.target instanceof Element ? event.target.closest(".fk-tree") : null);

  function nodeOf(event) {
    const tree = treeOf(event);
    if (!tree) return [null, null];
    const element = event.target.closest(".fk-node");
    if (element) return [tree, partsOf(tree).nodes.find((node) => node.element === element)];
    const strip = event.target.closest(".fk-strip");
    return [tree, strip ? partsOf(tree).nodes[Number(strip.dataset.n)] : null];
  }

  for (const kind of ["pointerover", "focusin", "click"]) {
    document.addEventListener(kind, (event) => {
      const [tree, node] = nodeOf(event);
      if (node) choose(tree, node);
    });
  }

  document.addEventListener("input", (event) => {
    if (event.target instanceof Element && event.target.matches(".fk-slider")) show(treeOf(event), Number(event.target.value));
  });

  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest(".fk-play") : null;
    if (!button) return;
    const tree = treeOf(event);
    const parts = partsOf(tree);
    if (parts.state.timer) return stop(parts, button);
    const last = parts.columns.length - 1;
    show(tree, parts.state.at === last ? 0 : parts.state.at);
    button.textContent = "❚❚";
    button.setAttribute("aria-label", "Pause");
    parts.state.timer = setInterval(() => {
      if (!tree.isConnected || parts.state.at >= last) return stop(parts, button);
      show(tree, parts.state.at + 1);
      if (parts.state.at === last) stop(parts, button);
    }, 700);
  });

  function stop(parts, button) {
    clearInterval(parts.state.timer);
    parts.state.timer = null;
    button.textContent = "▶";
    button.setAttribute("aria-label", "Play the events one after another");
  }

  document.addEventListener("keydown", (event) => {
    const [tree, focused] = nodeOf(event);
    if (!focused || event.altKey || event.ctrlKey || event.metaKey) return;
    const { nodes, state: { at } } = partsOf(tree);
    const node = nodes[focused.index];
    const column = nodes.filter((one) => one.column === node.column);
    const place = column.indexOf(node);
    const best = (among) => (among.length ? among.reduce(better) : null);
    let target = null;
    if (event.key === "ArrowLeft") target = nodes[node.parent];
    else if (event.key === "ArrowRight") {
      const children = nodes.filter((one) => one.parent === node.index && one.column <= at);
      target = children.find((one) => one.element.classList.contains("fk-winner")) ?? best(children);
    } else if (event.key === "ArrowUp") target = column[place - 1];
    else if (event.key === "ArrowDown") target = column[place + 1];
    else if (event.key === "Home") target = best(nodes.filter((one) => one.column === 0));
    else if (event.key === "End") target = best(nodes.filter((one) => one.column === at));
    else return;
    event.preventDefault();
    target?.element.focus();
  });
})();
