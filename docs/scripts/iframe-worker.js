// Browsers refuse workers to pages opened from disk. There, the search of the site runs in a hidden frame.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow, receive = data => this.dispatchEvent(new MessageEvent("message", {data}));
      inside.postMessage = receive;
      this.loaded = new Promise(done => {
        const script = inside.document.createElement("script");
        script.onload = () => done(inside);
        script.src = url;
        inside.document.head.append(script);
      });
    }

    postMessage(data) {
      this.loaded.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", {data})));
    }
  };
  window.Worker = window.IFrameWorker;
}
