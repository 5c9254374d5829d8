// What a test asks of a page. Each function gives a list of what is wrong, in words; an empty one is good.
(() => {
  const visible = (element) => element.getClientRects().length > 0;
  const said = (element) => `${element.closest("svg")?.getAttribute("class") ?? element.tagName}: ${element.textContent.trim().slice(0, 60)}`;
  const drawings = () => [...document.querySelectorAll("svg")].filter(visible);
  const meet = (a, b, slack) =>
    a.left < b.right - slack && b.left < a.right - slack && a.top < b.bottom - slack && b.top < a.bottom - slack;

  const outside = () =>
    drawings().flatMap((svg) => {
      const frame = svg.getBoundingClientRect();
      return [...svg.querySelectorAll("text")].filter((text) => {
        const box = text.getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
      });
    }).map(said);

  // A line's box is higher than its letters, so boxes may share a few pixels.
  const overlapping = (selector, slack) =>
    drawings().flatMap((svg) => {
      const texts = [...svg.querySelectorAll(selector)].map((text) => [text, text.getBoundingClientRect()]);
      const pairs = texts.flatMap((one, place) => texts.slice(place + 1).map((other) => [one, other]));
      return pairs.filter(([one, other]) => meet(one[1], other[1], slack)).map(([one, other]) => `${said(one[0])} / ${said(other[0])}`);
    });

  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    if (element.matches("text.grade")) return getComputedStyle(element.parentElement.querySelector(".mark")).fill;
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const faint = () => {
    const found = new Set();
    for (const element of document.querySelectorAll("body *")) {
      const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
      if (!own || !visible(element) || element.matches("title, script, style")) continue;
      const style = getComputedStyle(element);
      const ratio = contrast(element.closest("svg") ? style.fill : style.color, behind(element));
      if (ratio < 4.5) found.add(`${ratio.toFixed(2)} ${element.tagName}.${element.getAttribute("class")} ${said(element)}`);
    }
    return [...found];
  };

  const wide = () => {
    const root = document.documentElement;
    return root.scrollWidth > innerWidth ? [`${root.scrollWidth} px on a page of ${innerWidth} px`] : [];
  };

  return { outside: outside(), labels: overlapping(".label", 0.5), texts: overlapping("text", 4), faint: faint(), wide: wide() };
})();
