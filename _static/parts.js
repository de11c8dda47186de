// The sidebar is folded to the parts of the book; the part of the page that is open stands open.
document.addEventListener('DOMContentLoaded', () => {
  for (const caption of document.querySelectorAll('.bd-links p.caption')) {
    const list = caption.nextElementSibling;
    if (!list || list.tagName !== 'UL') continue;
    const part = document.createElement('details'), title = document.createElement('summary');
    part.className = 'part';
    part.open = list.querySelector('.current') !== null;
    title.textContent = caption.textContent;
    caption.replaceWith(part);
    part.append(title, list);
  }
});
