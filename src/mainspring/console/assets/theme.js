// The login page is no NiceGUI page: it reads the theme that was chosen in the console, or the system's.
addEventListener("DOMContentLoaded", () => {
  const chosen = document.cookie.match(/mainspring_theme=(\w+)/)?.[1] ?? "auto";
  const dark = chosen === "dark" || (chosen === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.body.classList.toggle("body--dark", dark);
});
