/* A page that is opened from disk may start no worker, and the search is one. There it runs in a hidden frame instead,
   which may; messages go both ways as a worker's do. */
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      this.ready = new Promise(done => frame.addEventListener("load", done))
      window.__answer = data => this.dispatchEvent(new MessageEvent("message", { data }))
      frame.srcdoc = `<script>self.postMessage = data => parent.__answer(data)</script><script src="${url}"></script>`
      document.body.appendChild(frame)
      this.frame = frame
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
