(()=>{document.body.textContent="no pictures yet";})();
