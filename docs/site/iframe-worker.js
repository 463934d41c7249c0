// A page that was opened as a file may start no worker: there the search runs in a frame of its own, with a worker's interface.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.onerror = this.onmessage = this.onmessageerror = null
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.inside = frame.contentWindow
      const page = this.inside.document
      page.open()
      page.write("<html><body></body></html>")
      page.close()
      const load = source =>
        new Promise((done, failed) => {
          const script = page.createElement("script")
          script.src = source
          script.onload = done
          script.onerror = failed
          page.body.appendChild(script)
        })
      this.inside.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
      this.inside.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      this.ready = load(url)
    }
    postMessage(data) {
      this.ready = this.ready.then(() =>
        this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })))
    }
    terminate() {
      this.inside.frameElement.remove()
    }
  }
}
